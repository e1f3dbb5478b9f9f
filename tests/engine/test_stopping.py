"""When a stage ends, and that its schedules finish wherever that is."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from pydantic import ValidationError

from xarch.config.schema import Plateau, Ramp, Until
from xarch.engine.stopping import StoppingRule
from xarch.engine.stopwatch import Spent, Stopwatch
from xarch.matching.schedules import value_at
from xarch.optim import LearningRate
from xarch.registry.loader import get_registry

FLAT = Until(plateau=Plateau(window=10, change=0.01))
WEIGHT = Ramp(start=1.0, end=0.0)


def rate(name: str = "wsd", warmup: float = 0.1, final: float = 0.0, **options: float) -> LearningRate:
    schedule = get_registry().create("schedule", name)
    return LearningRate(schedule, schedule.Options.model_validate(options), warmup, final)


def follow(rule: StoppingRule, loss, seconds=lambda step: 0.0) -> tuple[list[float], list[float]]:
    """Run a stage to its end; learning-rate factors and weights of its steps."""
    rates, weights = [], []
    while not rule.over:
        rates.append(rule.rate.factor(rule.lr_position, rule.steps))
        weights.append(value_at(WEIGHT, rule.progress))
        rule.update(loss(rule.done), seconds(rule.done + 1))
    return rates, weights


def knee(step: int) -> float:
    """Falls for fifty steps, then stays."""
    return 2.0 - 0.02 * min(step, 50)


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_without_until_every_step_runs_on_the_planned_schedule(schedule: str) -> None:
    planned = rate(schedule)
    rule = StoppingRule(None, 100, planned)
    rates, weights = follow(rule, lambda step: 1.0)
    assert rates == [planned.factor(i, 100) for i in range(100)]
    assert weights == [value_at(WEIGHT, i / 99) for i in range(100)]
    assert (rule.done, rule.reason) == (100, "")


def test_a_plateau_ends_a_constant_schedule_at_once() -> None:
    rule = StoppingRule(FLAT, 500, rate("constant", warmup=0.0))
    follow(rule, knee)
    assert (rule.done, rule.reason) == (70, "plateau")


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_after_a_plateau_the_rate_still_falls_to_its_end(schedule: str) -> None:
    rule = StoppingRule(FLAT, 500, rate(schedule, warmup=0.02, decay=0.3, final=0.1))
    rates, weights = follow(rule, knee)
    assert (rule.done, rule.reason) == (100, "plateau")  # flat from step 50 to 70; 30 of 100 steps fall
    tail = rates[69:]
    assert all(a > b for a, b in pairwise(tail))
    assert max(a - b for a, b in pairwise(tail)) < 0.1
    assert rates[-1] == pytest.approx(0.1, abs=0.04)
    assert weights[-1] == pytest.approx(0.0, abs=1e-9)
    assert all(a >= b for a, b in pairwise(weights))


def test_a_planned_fall_is_not_cut_short() -> None:
    planned = rate("wsd", warmup=0.0, decay=0.5)
    rule = StoppingRule(FLAT, 100, planned)
    rates, _ = follow(rule, lambda step: 2.0 - 0.02 * min(step, 45))
    assert (rule.done, rule.reason) == (100, "")
    assert rates == [planned.factor(i, 100) for i in range(100)]


def test_a_loss_that_moves_is_no_plateau() -> None:
    for loss in (lambda step: 0.98 ** (step / 10), lambda step: 1.02 ** (step / 10), lambda step: (step // 10) % 2 + 1):
        rule = StoppingRule(FLAT, 300, rate("constant"))
        follow(rule, loss)
        assert (rule.done, rule.reason) == (300, "")


def test_noise_is_smoothed_over_the_window() -> None:
    rule = StoppingRule(FLAT, 300, rate("constant", warmup=0.0))
    follow(rule, lambda step: 1.0 + 0.5 * (-1) ** step)
    assert (rule.done, rule.reason) == (20, "plateau")


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_schedules_are_fitted_to_the_seconds(schedule: str) -> None:
    fitted = rate(schedule, warmup=0.1, decay=0.3)
    rule = StoppingRule(Until(seconds=5.0), 1000, fitted)
    rates, weights = follow(rule, knee, lambda done: done * 0.05)
    assert (rule.done, rule.reason) == (100, "time")
    planned = [fitted.factor(10 * i, 1000) for i in range(100)]
    assert rates == pytest.approx(planned, abs=1e-9)
    assert weights[-1] == pytest.approx(0.01, abs=1e-3)


def test_a_stage_faster_than_its_time_is_not_cut() -> None:
    rule = StoppingRule(Until(seconds=5.0), 50, rate())
    follow(rule, knee, lambda done: done * 0.05)
    assert (rule.done, rule.reason) == (50, "")


@pytest.mark.parametrize("at", [3, 15, 69, 70, 71, 99])
def test_it_goes_on_from_its_state_as_if_nothing_had_happened(at: int) -> None:
    planned = rate("wsd", warmup=0.02)
    whole = StoppingRule(FLAT, 500, planned)
    rates, weights = follow(whole, knee)
    first = StoppingRule(FLAT, 500, planned)
    for step in range(at):
        first.update(knee(step), 0.0)
    second = StoppingRule(FLAT, 500, planned)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())), 0.0)
    assert follow(second, knee) == (rates[at:], weights[at:])
    assert (second.done, second.reason, second.end) == (whole.done, whole.reason, whole.end)


def test_seconds_of_an_interrupted_process_count() -> None:
    first = StoppingRule(Until(seconds=5.0), 1000, rate())
    first.update(1.0, 2.5)
    second = StoppingRule(Until(seconds=5.0), 1000, rate())
    second.load_state_dict(first.state_dict(), 2.5)
    assert second.position == first.position == 500
    assert Stopwatch(Spent(2.5, 2.0)).spent.seconds >= 2.5


def test_a_paused_stopwatch_stands_still() -> None:
    watch = Stopwatch()
    started = time.perf_counter()
    with watch.paused():
        time.sleep(0.5)
    assert watch.spent.seconds <= time.perf_counter() - started - 0.45


def test_an_ending_needs_a_reason() -> None:
    with pytest.raises(ValidationError, match="give `plateau`, `seconds` or both"):
        Until()


def test_a_watch_can_be_paused_while_it_is_paused() -> None:
    watch = Stopwatch()
    with watch.paused():
        with watch.paused():
            time.sleep(0.05)
        time.sleep(0.2)
        assert watch.spent.seconds < 0.05
    assert watch.spent.seconds < 0.1
