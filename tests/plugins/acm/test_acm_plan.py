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
    distil, gates = (next(s for s in plan.stages if s.name == name) for name in ("distil", "gates"))
    # What gates learn needs the teacher once more, forward and back.
    each = [stage.times["teacher"] / stage.units for stage in (distil, gates)]
    assert each[1] == pytest.approx(3 * each[0], rel=0.3)
    assert plan.student.traits["learners"] == "4 in each of 4 modules (mlp)"
    assert float(plan.student.traits["gates"].split()[0]) < 2
    assert {"top1", "variants.gated-50.executed"} <= set(plan.config.gates)
    with pytest.raises(UsageError, match=r"gates\.exekuted: no such figure"):
        xarch.plan("acm-demo", overrides={"runtime.device": "cpu", "gates.exekuted": {"max": 0.5}})
