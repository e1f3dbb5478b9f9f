"""Tables of budgets, and the page that shows them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xarch.report import RunInfo, Table
from xarch_acm.gate import Gate
from xarch_acm.report import sections
from xarch_acm.spent import Spent
from xarch_acm.tables import executed, fewest, shift_for

MODULES = {
    "cheap": SimpleNamespace(cost=1.0, learners=4, least=0, gate=Gate(2, 2, 5, estimates=False), gate_cost=0.0),
    "dear": SimpleNamespace(cost=3.0, learners=4, least=1, gate=Gate(2, 2, 4, estimates=False), gate_cost=0.0),
}


def test_learners_go_where_they_are_missed_least_for_their_cost():
    flat = {k: 1.0 for k in range(5)}
    steep = {k: 1.0 + 8.0 * (4 - k) for k in range(1, 5)}
    # All of the cheap module goes (4 of 16), then the least of the dear one that is enough.
    assert fewest({"cheap": flat, "dear": steep}, MODULES, 0.75) == {"cheap": 0, "dear": 4}
    assert fewest({"cheap": flat, "dear": steep}, MODULES, 0.5) == {"cheap": 0, "dear": 2}
    # A module that must have a learner keeps it, whatever the budget.
    assert fewest({"cheap": flat, "dear": steep}, MODULES, 0.01) == {"cheap": 0, "dear": 1}
    # The cheap one that goes first comes back where a dear one went after it.
    cheap = {0: 36.5, 1: 24.5, 2: 12.5, 3: 0.5, 4: 0.0}
    dear = {k: 3.0 * (4 - k) for k in range(1, 5)}
    assert fewest({"cheap": cheap, "dear": dear}, MODULES, 0.85) == {"cheap": 4, "dear": 3}
    # Equal losses a learner: the dear ones go first.
    even = {k: float(4 - k) for k in range(5)}
    assert fewest({"cheap": even, "dear": {k: even[k] for k in range(1, 5)}}, MODULES, 0.5) == {"cheap": 4, "dear": 1}


def test_noise_that_favours_fewer_learners_counts_as_none():
    noisy = {0: 5.0, 1: 0.9, 2: 1.1, 3: 1.0, 4: 1.0}
    assert fewest({"cheap": noisy, "dear": {k: 9.0 * (4 - k) for k in range(1, 5)}}, MODULES, 0.875)["cheap"] == 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_prices_reach_a_budget_too(share):
    """What is estimated falls with every learner, by other amounts at every position."""
    generator = torch.Generator().manual_seed(0)
    modules = {"a": SimpleNamespace(cost=1.0, learners=4, least=0, gate=Gate(2, 2, 5, estimates=True), gate_cost=0.0)}
    falls = torch.rand(4000, 5, generator=generator).cumsum(-1)
    logits = {"a": torch.randn(4000, 1, generator=generator) - falls}
    shift = shift_for(modules, logits, share)
    assert executed(modules, logits, shift) == pytest.approx(share, abs=0.01)
    assert executed(modules, logits, shift + 1) > share > executed(modules, logits, shift - 1)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_shift_reaches_its_budget(share):
    generator = torch.Generator().manual_seed(0)
    logits = {"cheap": torch.randn(4000, 5, generator=generator), "dear": torch.randn(4000, 4, generator=generator)}
    shift = shift_for(MODULES, logits, share)
    expected = max(share, 3 / 16)
    assert executed(MODULES, logits, shift) == pytest.approx(expected, abs=0.01)
    assert (shift < 0) == (share < executed(MODULES, logits, 0.0))


def test_what_ran_is_weighted_by_its_cost():
    cheap = SimpleNamespace(**{**vars(MODULES["cheap"]), "gate_cost": 0.5})
    spent = Spent({**MODULES, "cheap": cheap})
    spent.add("cheap", torch.eye(5)[[4, 0]], gated=True)
    spent.add("dear", torch.eye(4)[[0, 0]], gated=False)
    # 4 learners of 1 and twice a gate of 0.5, twice the least learner of 3, of 2 * 16; one module varies from none to
    # all, the other does not; one of the samples takes 7 of 16, the other 3.
    assert spent.read() == pytest.approx({"executed": (4 + 1 + 6) / 32, "deviation": 0.25, "spread": 0.125})
    assert spent.read() == {}


def test_the_page_shows_quality_against_what_ran():
    evaluation = {
        "metric": "top1",
        "teacher": {"top1": 0.98},
        "student": {"top1": 0.97, "executed": 0.5},
        "variants": {
            f"{kind}-{b}": {"top1": b / 100, "executed": b / 100} for b in (25, 50) for kind in ("gated", "static")
        },
    }
    per_site = {"fixed.25": {"a": 1.0, "b": 2.0}, "mean": {"a": 1.5, "b": 2.5}, "share.0": {"a": 0.25, "b": 0.0}}
    run = RunInfo(Path("run"), student={"target": "acm"}, eval=evaluation, stages={"06-tables": {"per_site": per_site}})
    [section] = sections(run)
    table, figures = section.blocks
    curve, learners, histogram = figures.figures
    assert "0 learners: 25 %, 0 %" in histogram.text
    assert isinstance(table, Table)
    assert table.rows[0] == ["teacher", "100.0 %", "0.98"]
    assert ["static-25", "25.0 %", "0.25"] in table.rows
    assert "fixed learners" in curve.text
    assert "gates, mean: 1.5, 2.5" in learners.text
    assert sections(RunInfo(Path("run"), student={"target": "timm"}, eval=evaluation)) == []
