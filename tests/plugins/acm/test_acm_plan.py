"""The demo as it is planned: nothing is trained."""

from __future__ import annotations

import pytest

import xarch
from xarch import UsageError


@pytest.mark.slow
def test_the_demo_says_what_it_replaces_and_may_limit_what_runs():
    plan = xarch.plan("acm-demo", overrides={"runtime.device": "cpu"})
    assert [stage.name for stage in plan.stages] == [
        "sort",
        "distil",
        "threshold",
        "gates",
        "shifts",
        "budget",
        "tables",
    ]
    assert plan.student.traits["learners"] == "4 in each of 4 modules (mlp)"
    assert float(plan.student.traits["gates"].split()[0]) < 2
    assert {"top1", "variants.gated-50.executed"} <= set(plan.config.gates)
    with pytest.raises(UsageError, match=r"gates\.exekuted: no such figure"):
        xarch.plan("acm-demo", overrides={"runtime.device": "cpu", "gates.exekuted": {"max": 0.5}})
