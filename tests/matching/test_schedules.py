"""Numbers and settings over a stage."""

from __future__ import annotations

import pytest

from xarch.config.schema import Ramp, Stage
from xarch.errors import UsageError
from xarch.matching.schedules import phase_index, phase_settings, value_at

STAGE = {
    "matches": {"kd": {"student": "logits", "objective": "kl"}, "ce": {"student": "logits", "objective": "kl"}},
    "trains": {"all": {}},
    "batch": {"size": 4, "steps": {"mixup": {"alpha": 0.8}}},
}


def stage(*phases: dict[str, object]) -> Stage:
    return Stage.model_validate({**STAGE, "phases": list(phases)})


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential"])
def test_ramps_begin_and_end_where_they_say(shape: str) -> None:
    ramp = Ramp(start=4.0, end=1.0, shape=shape)  # type: ignore[arg-type]
    assert (value_at(ramp, 0.0), value_at(ramp, 1.0), value_at(ramp, 2.0)) == (4.0, 1.0, 1.0)
    assert value_at(ramp, 0.5) == pytest.approx({"linear": 2.5, "cosine": 2.5, "exponential": 2.0}[shape])
    assert value_at(3.0, 0.7) == 3.0


def test_phases_add_to_each_other_in_the_order_of_their_beginnings() -> None:
    """vision 2.8c: deferred settings were a constant step, not a share of the stage."""
    given = stage(
        {"from": 0.8, "set": {"batch.steps.mixup": None, "matches.kd.options.reweight": True}},
        {"from": 0.5, "set": {"matches.ce": None, "trains.all.lr": 0.1}},
    )
    settings = phase_settings(given, "stages.s")
    at = [settings[phase_index(given.phases, p)] for p in (0.0, 0.5, 0.79, 0.8, 1.0)]
    assert [s.matches["ce"].weight for s in at] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert [s.trains["all"].lr for s in at] == [1.0, 0.1, 0.1, 0.1, 0.1]
    assert [list(s.batch.steps) for s in at] == [["mixup"], ["mixup"], ["mixup"], [], []]
    assert at[-1].matches["kd"].options == {"reweight": True}
    assert given.matches["ce"].weight == 1.0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimiser.lr", 1.0, "cannot change within a stage"),
        ("matches.nope.weight", 1.0, "has no match 'nope'"),
        ("batch.steps.nope", None, "has no batch step 'nope'"),
        ("trains.nope.lr", 1.0, "has no parameter group 'nope'"),
        ("matches.kd.weight", "much", "matches.kd.weight"),
    ],
)
def test_what_a_phase_cannot_set_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        phase_settings(stage({"from": 0.5, "set": {key: value}}), "stages.s")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("heavy", r"kd\.weight: input should be a number or \{start, end, shape\} \(seen 'heavy'\)"),
        ({"start": 1}, r"kd\.weight\.end is required"),
        ({"start": 1, "ned": 2}, r"kd\.weight\.ned: unknown key; did you mean 'end'\?"),
    ],
)
def test_a_wrong_value_in_a_phase_is_told_without_internals(value: object, message: str) -> None:
    """It named the alternatives of a union: "weight.float: …; weight.Ramp: …"."""
    with pytest.raises(UsageError, match=message) as caught:
        phase_settings(stage({"from": 0.5, "set": {"matches.kd.weight": value}}), "stages.s")
    assert caught.value.what.count("kd.weight.float") == caught.value.what.count("Ramp") == 0
