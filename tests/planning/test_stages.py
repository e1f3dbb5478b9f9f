"""Stages of a plan: amounts, batch steps, coupling, options, caches and memory, on a family of small classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from xarch.api import plan
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError
from xarch.planning import estimate
from xarch.planning.plan import Plan
from xarch.registry.loader import get_registry

STAGE = {
    "scope": "global",
    "epochs": 4,
    "batch": 20,
    "matches": {
        "kd": {"student": "logits", "objective": "kl", "weight": 2.0},
        "labels": {"student": "logits", "teacher": "batch:labels", "objective": "cross-entropy"},
    },
    "trains": {"all": {}},
}


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XARCH_PLUGIN_FILES", str(Path(__file__).parent / "conv_plugin.py"))
    get_registry.cache_clear()
    yield
    get_registry.cache_clear()


def planned(stage: dict[str, Any] | None = None, **more: Any) -> Plan:
    settings = {k: v for k, v in {**STAGE, **(stage or {})}.items() if v is not None}
    values: dict[str, Any] = {
        "teacher": "conv:4x10",
        "student.target": "conv",
        "data.ref": "pictures:all",
        "export.profiles": [],
        "runtime.device": "cpu",
        "stages": {"s": settings},
    }
    return plan(overrides={**values, **{k.replace("__", "."): v for k, v in more.items()}})


def test_epochs_come_from_the_data() -> None:
    """vision 2.10: epochs were a budget that a person multiplied by hand."""
    (stage,) = planned().stages
    assert (stage.units, stage.steps) == (4000, 200)
    with pytest.raises(UsageError, match="`units` and `epochs` are mutually exclusive"):
        planned({"units": 100})
    with pytest.raises(UsageError, match="has no data budget"):
        planned({"epochs": None})


def test_checkpoints_and_rows_follow_the_length_of_a_stage() -> None:
    """House rule: a long stage of quick steps spends its time on training; what is asked for is obeyed."""
    intervals = []
    for epochs in (4, 400, 40_000):
        config = planned({"epochs": epochs}).stages[0].config
        intervals.append((config.checkpoint_every, config.log_every))
    assert intervals == [(50, 1), (500, 20), (1000, 2000)]
    config = planned({"epochs": 400, "checkpoint_every": 7, "log_every": 3}).stages[0].config
    assert (config.checkpoint_every, config.log_every) == (7, 3)


def test_a_method_is_for_the_families_of_its_head() -> None:
    """House rule: what a method declares is obeyed; its families were read by nobody but `xarch list`."""
    assert planned(families=["conv", "other"]).config.families == ["conv", "other"]
    with pytest.raises(PlanError, match="is for students of other; conv builds one of the family 'conv'"):
        planned(families=["other"])
    assert planned(families=[]).stages


def test_a_plan_has_one_place_for_settings() -> None:
    """house A2c: the report read one copy of the settings and the engine another."""
    made = planned()
    (stage,) = made.stages
    assert stage.config is made.config.stages["s"]
    again = Plan.model_validate_json(made.model_dump_json())
    assert again.stages[0].config is again.config.stages["s"]
    assert again.stages[0].batch == 20
    again.config.stages["s"].optimiser.lr = 0.5
    assert again.stages[0].config.optimiser.lr == 0.5


def test_tiny_settings_are_those_of_the_configuration_too() -> None:
    made = planned(tiny=True)
    assert (made.stages[0].batch, made.config.stages["s"].batch.size, made.stages[0].steps) == (2, 2, 6)


def test_matches_are_planned_with_all_that_a_report_shows() -> None:
    """encdec nits, vision 2.19: the plan showed neither weights nor what objectives and exits bring."""
    exits = {"student": "features.1", "teacher": "logits", "through": "exit", "objective": "kl"}
    made = planned({"matches": {**STAGE["matches"], "exits": exits}})
    kd, labels, exit_ = made.stages[0].matches
    assert (kd.label, kd.student, kd.right, kd.weight, kd.objective) == ("kd", ["logits"], "logits", 2.0, "kl")
    assert (labels.right, labels.layouts[1]) == ("batch:labels", "B")
    assert exit_.connector == "exit"
    assert exit_.parameters > 0
    assert made.stages[0].trains["connectors"] == exit_.parameters


def test_a_coupled_batch_is_never_cut() -> None:
    """house A4, encdec W1, vision 2.2: ``couples`` was read when memory ran out, and nowhere else."""
    match = {"matches": {"m": {"student": "logits", "objective": "coupled"}}}
    made = planned(match)
    assert "Coupled" in made.stages[0].coupled
    assert [c.detail for c in made.checks if c.name == "batch s"]
    with pytest.raises(PlanError, match=r"a batch of 20 cannot be split into 5"):
        planned({**match, "micro_batch": 5})
    assert planned({"micro_batch": 5}).stages[0].coupled == ""
    with pytest.raises(PlanError, match="cannot be split"):
        planned({"micro_batch": 5}, student__options={"norm": True})


def test_batch_steps_are_proven_in_their_order() -> None:
    """vision 2.8d: the plan could not know which keys a step makes."""
    match = {"soft": {"student": "logits", "teacher": "batch:soft", "objective": "cross-entropy"}}
    with pytest.raises(PlanError, match="batches have no tensor 'soft'"):
        planned({"matches": match})
    with_step = {"matches": match, "batch": {"size": 20, "steps": {"soft-labels": {}}}}
    plain, stepped = planned().stages[0], planned(with_step).stages[0]
    assert stepped.matches[0].layouts == ("BK", "BK")
    assert stepped.times["batch steps"] > 0
    assert "batch steps" not in plain.times
    with pytest.raises(UsageError, match=r"steps\.soft-labels\.alpha"):
        planned({"matches": match, "batch": {"size": 20, "steps": {"soft-labels": {"alpha": 1}}}})
    without = [{"from": 0.5, "set": {"batch.steps.soft-labels": None}}]
    with pytest.raises(PlanError, match="batches have no tensor 'soft'"):
        planned({**with_step, "phases": without})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"optimiser": {"options": {"betaz": 1}}}, r"optimiser\.options\.betaz"),
        ({"optimiser": {"algorithm": "adamv"}}, "did you mean 'adamw'"),
        ({"optimiser": {"schedule": {"name": "step", "milestone": [0.5]}}}, r"optimiser\.schedule\.milestone"),
        ({"optimiser": {"wrap": {"sam": {"rhoo": 1}}}}, r"wrap\.sam\.rhoo"),
        ({"options": {"nope": 1}}, r"stages\.s\.options\.nope"),
        ({"trains": {"hed": {}}}, "no group 'hed'"),
        ({"requires": {"top1": {"min": 0.5}}}, "is not SIDE.FIGURE"),
        ({"requires": {"techer.top1": {"min": 0.5}}}, "teacher"),
        ({"phases": [{"from": 0.5, "set": {"matches.kd.options.tempra": 2}}]}, r"options\.tempra"),
        ({"kind": "counting"}, "does not optimise matches"),
        ({"trains": {}}, "requires `trains`"),
    ],
)
def test_wrong_settings_are_found_while_planning(stage: dict[str, Any], message: str) -> None:
    """vision 2.5: objects with options took anything."""
    with pytest.raises(UsageError, match=message.replace("'", ".")):
        planned(stage)


def test_a_stage_without_a_budget_takes_no_step() -> None:
    """It took one step all the same. Without any other stage the student would stay as it was built."""
    for nothing in ({"units": 0}, {"share": 0.0}):
        with pytest.raises(PlanError, match=r"no stage trains the student.*stage s is skipped: its budget is 0"):
            planned({**nothing, "epochs": None})
    with pytest.raises(PlanError, match="its budget is 0"):
        planned({"share": 1.0, "epochs": None}, budget=0)
    idle = {**{k: v for k, v in STAGE.items() if k != "epochs"}, "units": 0}
    made = planned(stages={"s": STAGE, "idle": idle})
    assert [s.name for s in made.stages] == ["s"]
    assert any("stage idle is skipped: its budget is 0" in w for w in made.warnings)
    assert planned({"units": 1, "epochs": None}).stages[0].steps == 1


def test_another_kind_says_itself_what_it_reads() -> None:
    """house 1.3: kinds were told apart by their names."""
    kind = {"kind": "counting", "epochs": None, "matches": None, "trains": None, "batch": 1}
    assert planned({**kind, "options": {"count": 7}}).stages[0].units == 7
    with pytest.raises(UsageError, match=r"options\.cuont"):
        planned({**kind, "options": {"cuont": 7}})


def test_an_optional_stage_is_left_out_where_a_tap_is_missing() -> None:
    other = {"matches": {"m": {"student": "features.9", "objective": "mse"}}, "optional": True}
    made = planned(None, stages={"s": STAGE, "hint": {**STAGE, **other}})
    assert [s.name for s in made.stages] == ["s"]
    assert any("stage hint is skipped" in w and "features.9" in w for w in made.warnings)


def test_a_student_of_its_own() -> None:
    own = {"matches": {"labels": STAGE["matches"]["labels"]}}
    made = planned(own, teacher="none")
    assert made.teacher is None
    assert made.stages[0].memory["teachers"] == 0
    with pytest.raises(PlanError, match="teacher: none"):
        planned(teacher="none")


def test_the_teacher_is_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """house 1.5: twice for every default recipe."""
    seen: list[str] = []
    source = get_registry().resolve(get_registry().get("source", "conv"))
    describe = source.describe
    monkeypatch.setattr(source, "describe", lambda self, ref, options: seen.append(ref) or describe(self, ref, options))
    planned()
    assert seen == ["4x10"]


@pytest.mark.parametrize(
    ("tap", "sizes", "wanted"),
    [
        (Tap("l", "logits", "BC", {"C": 1000}), {}, 4000),
        (Tap("f", "feature", "BCHW", {"C": 512, "H": 7, "W": 7}), {}, 100_352),
        (Tap("n", "feature", "NF", {"F": 16}), {}, 64),
        (Tap("h", "hidden", "BLD", {"D": 8}), {"L": 5}, 160),
        (Tap("l", "logits", "factored-logits", {"V": 7, "D": 8}, {"elements": "BLD"}), {"L": 5}, 160),
        (Tap("m", "matrix", "attention-factors"), {"L": 5}, None),
        (Tap("h", "hidden", "BLD", {"D": 8}), {}, None),
    ],
)
def test_what_a_cache_takes(tap: Tap, sizes: dict[str, int], wanted: int | None) -> None:
    """house A3, encdec W21: logits of 1000 classes counted 4 bytes, features 196, and factored logits nothing."""
    assert estimate.value_bytes([tap], sizes) == wanted
    plan = estimate.plan_cache("auto", 2, 10, [tap], sizes, 4.0)
    assert (plan.bytes, plan.use) == ((wanted or 0) * 10, wanted is not None)


def test_a_cache_that_does_not_fit_is_not_promised() -> None:
    """house A3: 0.25 GB were promised for features that take 514 GB."""
    tap = Tap("f", "feature", "BCHW", {"C": 2048, "H": 7, "W": 7})
    made = estimate.plan_cache("disk", 300, 1_281_167, [tap], {}, 4.0)
    assert (made.use, round(made.bytes / 1e9)) == (False, 514)


def saved_bytes(samples: int, student: Any, trained: set[str]) -> int:
    """What a real forward pass of the student saves on the CPU."""
    for name, parameter in student.module.named_parameters():
        parameter.requires_grad_(name in trained)
    known = {p.untyped_storage().data_ptr() for p in student.module.parameters()}
    images = torch.randn(samples, 3, 28, 28)
    known.add(images.untyped_storage().data_ptr())
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    from xarch.contracts.batch import Batch

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        logits = student.collect(Batch({"images": images}, samples), {"logits"})["logits"]
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(samples, dtype=torch.long))
        loss.backward()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_activations_are_those_of_the_real_step() -> None:
    """house A3, vision 1: 4.77 MB "at most" against 74.7 MB of saved activations, the same for batch 1 and 256."""
    labels = {"matches": {"labels": STAGE["matches"]["labels"]}}
    target = get_registry().create("target", "conv")
    facts = get_registry().create("source", "conv").describe("4x10", None).facts
    found = {}
    for batch in (4, 64):
        made = planned({**labels, "batch": batch}).stages[0]
        assert made.notes == []
        student = target.build(facts, target.Options(), {}, device=torch.device("cpu"))
        real = saved_bytes(batch, student, {n for n, _ in student.module.named_parameters()})
        found[batch] = made.memory["activations"]
        assert real <= found[batch] <= 1.6 * real
    assert found[64] > 10 * found[4]
    assert planned({**labels, "batch": 64, "micro_batch": 4}).stages[0].memory["activations"] == found[4]
    head = planned({**labels, "batch": 64, "trains": {"head": {}}}).stages[0]
    assert head.memory["activations"] < found[64] / 3


def test_memory_has_gradients_moments_and_copies() -> None:
    made = {
        name: planned(stage).stages[0]
        for name, stage in {
            "adamw": {},
            "sgd": {"optimiser": {"algorithm": "sgd"}},
            "ema": {"ema": 0.99},
        }.items()
    }
    parameters = sum(made["adamw"].trains.values())
    assert made["adamw"].memory["gradients"] == 4 * parameters
    assert made["adamw"].memory["optimiser"] == 8 * parameters
    assert made["sgd"].memory["optimiser"] == 4 * parameters
    assert made["ema"].memory["average"] == 4 * parameters
    assert made["adamw"].memory_bytes == sum(made["adamw"].memory.values())


def test_work_that_wrappers_and_exits_add_costs_time() -> None:
    """vision 1: KD was estimated dearer than OFA-KD, which costs twice as much."""
    plain = planned().stages[0]
    sam = planned({"optimiser": {"wrap": {"sam": {}}}}).stages[0]
    assert sam.times["student"] == pytest.approx(2 * plain.times["student"], rel=0.5)
    exits = {"student": "features.*", "teacher": "logits", "through": "exit", "objective": "kl"}
    more = planned({"matches": {**STAGE["matches"], "exits": exits}}).stages[0]
    assert more.times["student"] > plain.times["student"] * 1.05 or more.memory["connectors"] > 0


def test_a_step_that_cannot_be_traced_falls_back_to_a_formula_and_says_so() -> None:
    made = planned({"matches": {"m": {"student": "logits", "objective": "untraceable"}}}).stages[0]
    assert made.memory["activations"] > 0
    assert "rule of thumb" in made.notes[0]
    assert "meta" in made.notes[0]
