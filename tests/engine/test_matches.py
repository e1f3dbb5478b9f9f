"""What a stage's matches compute, however a batch is cut, whatever they refer to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.lab import LAST, planned, registry, run
from xarch.engine.distributed import Distributed
from xarch.engine.matches import EngineMatches, MemoryLimit
from xarch.engine.modes import Modes
from xarch.engine.terms import StageModules
from xarch.errors import OutOfMemoryError, PlanError
from xarch.matching.objectives.dense import DenseObjective

COUPLED = {"student": "layers.2.output", "objective": "coupled"}


def test_a_coupled_batch_is_never_cut_silently(tmp_path: Path) -> None:
    """house A4, vision 2.2, encdec W1: ``micro_batch: 2`` gave a coupled objective two samples at a time."""
    assert run(tmp_path, {"matches": {"m": COUPLED}}).rows[0]["monitor.rows.m"] == 8
    with pytest.raises(PlanError, match=r"stages\.s\.micro_batch.*m.*Coupled"):
        planned({"matches": {"m": COUPLED}, "micro_batch": 2})


class Two(Distributed):
    """One of two processes, without the other."""

    def __init__(self) -> None:
        super().__init__(cpu=True)
        self.world = 2


@pytest.mark.parametrize(("processes", "micro", "said"), [(Distributed, 2, "micro_batch"), (Two, None, "2 processes")])
def test_the_engine_itself_refuses_to_cut(processes: Any, micro: int | None, said: str) -> None:
    """house A4, encdec W1: a plan of another machine, or changed by hand, is not obeyed either."""
    stage = planned({"matches": {"m": COUPLED}}).stages[0].config
    with pytest.raises(PlanError, match=rf"stages\.s.*{said}.*it couples"):
        EngineMatches(
            terms=[],
            walk=None,  # type: ignore[arg-type]
            phases=[stage],
            coupled="it couples",
            micro_batch=micro,
            modes=Modes([], []),
            processes=processes(),
            limit=MemoryLimit("s", 4, 0, print),
            module=StageModules([]),
            trained={},
            averaged=None,  # type: ignore[arg-type]
            on_progress=lambda progress: None,
            cutting={},
        )


def test_statistics_over_the_batch_couple_it_unless_they_are_frozen(tmp_path: Path) -> None:
    """vision 2.2, 2.13: a student with BatchNorm was cut without a word."""
    stage = {"matches": {"m": LAST}, "micro_batch": 2}
    with pytest.raises(PlanError, match="norm computes statistics over the batch"):
        planned(stage, student__target="normed")
    frozen = run(tmp_path, {**stage, "trains": {"layers": {}}}, student__target="normed")
    assert frozen.rows[0]["monitor.rows.m"] == 2
    assert frozen.weights["norm.num_batches_tracked"] == 0
    assert torch.equal(frozen.weights["norm.running_mean"], torch.zeros(8))


def test_a_connector_with_statistics_couples_the_batch() -> None:
    """vision 2.2: the same class couples with one connector and not with another."""
    exits = {"m": {**LAST, "through": "norm-exit"}}
    with pytest.raises(PlanError, match=r"m.*NormExit"):
        planned({"matches": exits, "micro_batch": 2})
    planned({"matches": {"m": {**LAST, "through": "line"}}, "micro_batch": 2})


@pytest.mark.slow
def test_memory_that_runs_out_never_cuts_a_coupled_batch(tmp_path: Path) -> None:
    hungry = {"student": "layers.2.output", "objective": "hungry"}
    cut = run(tmp_path / "a", {"matches": {"m": {**hungry, "options": {"most": 2}}}})
    whole = run(tmp_path / "b", {"matches": {"m": hungry}})
    assert [r["loss"] for r in cut.rows] == pytest.approx([r["loss"] for r in whole.rows], rel=1e-5)
    assert "micro-batches of 2" in cut.log
    with pytest.raises(OutOfMemoryError, match="cannot be split"):
        run(tmp_path / "c", {"matches": {"m": {**hungry, "options": {"most": 2, "coupled": True}}}})


LOCAL = {"scope": "local", "matches": {"m": {"student": "output", "objective": "seen"}}}
CUT: list[dict[str, Any]] = [
    {"matches": {"m": LAST}},
    LOCAL,
    {"matches": {"m": {"student": "layers.2.output", "objective": "bytarget"}}},
    {"scope": "local", "matches": {"m": {"student": "output", "objective": "bytarget"}}},
]


@pytest.mark.parametrize("stage", CUT, ids=["global", "local", "global, by target", "local, by target"])
def test_micro_batches_give_what_whole_batches_give(stage: dict[str, Any], tmp_path: Path) -> None:
    """vision 2.7: also where the target says how much a sample counts."""
    masked = {"data__options": {"mask": "mask"}}
    whole = run(tmp_path / "a", stage, **masked)
    cut = run(tmp_path / "b", {**stage, "micro_batch": 3}, **masked)
    assert [r["loss"] for r in cut.rows] == pytest.approx([r["loss"] for r in whole.rows], rel=1e-5)
    for name, value in whole.weights.items():
        assert torch.allclose(cut.weights[name], value, atol=1e-5), name


def test_a_mask_counts_from_the_phase_that_gives_it(tmp_path: Path) -> None:
    """The mask of the first phase, none here, was used in every phase."""
    phases = [{"from": 0.5, "set": {"batch.steps.padding": {}}}]
    found = run(tmp_path, {"matches": {"m": LAST}, "phases": phases}).rows
    assert max(row["loss"] for row in found) < 1e2


@pytest.mark.parametrize("stage", CUT[:2], ids=["global", "local"])
def test_losses_and_denominators_see_the_same_view(stage: dict[str, Any], tmp_path: Path) -> None:
    """house A3, encdec W2: ``mask@student`` was seen by the loss and not by its denominator."""
    plain = run(tmp_path / "a", {**stage, "validation": {"samples": 8}}, data__options={"mask": "mask"})
    view = run(tmp_path / "b", {**stage, "validation": {"samples": 8}}, data__options={"mask": "mask@student"})
    none = run(tmp_path / "c", {**stage, "validation": {"samples": 8}})
    assert view.rows == plain.rows
    assert view.summary["metrics"] == plain.summary["metrics"]
    assert none.rows[0]["loss"] != plain.rows[0]["loss"]


def test_matches_on_one_tap_have_figures_of_their_own(tmp_path: Path) -> None:
    """vision 2.4c, encdec W4: figures were filed under the student tap and added up."""
    two = {"a": {**LAST, "weight": 2.0}, "b": {"student": "layers.2.output", "objective": "pull", "teacher": None}}
    two["b"]["teacher"] = "layers.2.output"
    done = run(tmp_path, {"matches": two}, data__options={"watch": True})
    row = done.rows[0]
    assert row["weighted.a"] == pytest.approx(2 * row["match.a"])
    assert row["weighted.b"] == pytest.approx(row["match.b"])
    assert row["loss"] == pytest.approx(row["weighted.a"] + row["weighted.b"])
    assert row["monitor.rows.a"] == 8


def test_figures_are_computed_for_logged_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost a small step a tenth of its time."""
    computed: list[float] = []
    figures = DenseObjective.figures

    def counted(*args: Any) -> Any:
        found = figures(*args)
        computed.append(float(found["relative_error"]))
        return found

    monkeypatch.setattr(DenseObjective, "figures", counted)
    mse = {"student": "layers.2.output", "objective": "mse"}
    rows = run(tmp_path, {"matches": {"m": mse}, "log_every": 3}).rows
    assert [row["step"] for row in rows] == [3, 6]
    assert [row["monitor.relative_error.m"] for row in rows] == computed


def test_a_stream_hears_the_losses_of_every_match(tmp_path: Path) -> None:
    """encdec W4: a pool of hard samples got the sum over matches."""
    two = {"a": LAST, "b": {"student": "layers.2.output", "objective": "pull"}}
    done = run(tmp_path, {"matches": two, "micro_batch": 3}, data__options={"watch": True})
    taken = done.conversion.sides.data.adapter.__class__
    stream = __import__(taken.__module__).Noise
    batch, losses = stream.taken[-1]
    assert set(losses) == {"a", "b"}
    assert losses["a"].shape == losses["b"].shape == (len(batch),) == (8,)
    assert float(losses["b"].mean()) == pytest.approx(done.rows[-1]["match.b"], rel=1e-5)


def test_a_stream_hears_the_losses_before_a_wrapper_moved_the_weights(tmp_path: Path) -> None:
    """It heard those of SAM's second pass, as did the objectives' further figures."""
    wrapped = {"lr": 0.02, "schedule": "constant", "wrap": {"sam": {"rho": 5.0}}}
    stage = {"matches": {"m": {"student": "layers.2.output", "objective": "mse"}}, "optimiser": wrapped}
    done = run(tmp_path, stage, data__options={"watch": True})
    stream = __import__(done.conversion.sides.data.adapter.__class__.__module__).Noise
    _, losses = stream.taken[-1]
    assert float(losses["m"].mean()) == pytest.approx(done.rows[-1]["match.m"], rel=1e-5)


def test_weights_and_options_follow_their_schedules(tmp_path: Path) -> None:
    scaled = {
        "student": "layers.2.output",
        "objective": "scaled",
        "weight": {"start": 1.0, "end": 0.0},
        "options": {"scale": {"start": 0.0, "end": 1.0}},
    }
    done = run(tmp_path, {"matches": {"m": scaled, "n": LAST}, "micro_batch": 4})
    assert [r["match.m"] for r in done.rows] == pytest.approx([i / 5 for i in range(6)])
    assert [r["weighted.m"] for r in done.rows] == pytest.approx([i / 5 * (1 - i / 5) for i in range(6)])


PULL = {"student": "layers.2.output", "objective": "pull"}
SHALLOW = "layers.1.output"


def first(folder: Path, match: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Figures of the first step of a stage with one match."""
    stage = changes.pop("stage", {})
    return run(folder, {"matches": {"m": match}, **stage}, **changes).rows[0]


def test_copies_of_the_student_are_what_it_was(tmp_path: Path) -> None:
    """house A2: no right side but the teacher's could be named."""
    own = run(tmp_path / "a", {"matches": {"m": {**PULL, "teacher": "self:layers.2.output"}, "n": LAST}})
    assert own.rows[0]["match.m"] == 0.0
    assert own.rows[-1]["match.m"] > own.rows[1]["match.m"] > 0.0
    mean = run(
        tmp_path / "b",
        {
            "matches": {"m": {**PULL, "teacher": "ema:layers.2.output"}, "n": LAST},
            "ema": {"decay": 0.5, "adopt": False},
        },
    )
    assert mean.rows[0]["match.m"] == 0.0
    assert 0.0 < mean.rows[-1]["match.m"] < own.rows[-1]["match.m"]
    with pytest.raises(PlanError, match="ema"):
        run(tmp_path / "c", {"matches": {"m": {**PULL, "teacher": "ema:layers.2.output"}}})


@pytest.mark.parametrize("key", ["teacher", "aux"])
def test_the_students_own_values_are_detached_unless_asked(key: str, tmp_path: Path) -> None:
    """house A2, encdec W13, vision 2.16."""
    reference = f"student:{SHALLOW}"
    match = {**PULL, "teacher": reference} if key == "teacher" else {**PULL, "aux": {"aim": reference}}
    held = first(tmp_path / "a", match)
    free = first(tmp_path / "b", {**match, "detach": False})
    assert held["loss"] == free["loss"] > 0
    assert held["grad_norm"] != pytest.approx(free["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_several_teachers_are_matched_by_name_or_all_together(tmp_path: Path) -> None:
    """house 1.1: one teacher was all there could be."""
    teachers = {"twin": {"ref": "stack:3"}, "chance": {"ref": "random", "weight": 0.0}}
    main = first(tmp_path / "a", PULL, teachers=teachers)
    twin = first(tmp_path / "b", {**PULL, "teacher": "twin:layers.2.output"}, teachers=teachers)
    chance = first(tmp_path / "c", {**PULL, "teacher": "random:layers.2.output"}, teachers=teachers)
    assert main["loss"] == twin["loss"] != chance["loss"]
    spread = {"student": "layers.2.output", "objective": "spread", "teacher": "*:layers.2.output"}
    every = first(tmp_path / "d", spread, teachers=teachers)
    assert every["monitor.teachers.m"] == 2
    assert every["loss"] == pytest.approx(main["loss"])


def test_joined_taps_reach_the_objective_together(tmp_path: Path) -> None:
    """vision 2.16."""
    joined = {"student": "layers.*.output", "join": True, "objective": "spread", "teacher": "layers.2.output"}
    row = first(tmp_path, joined)
    assert row["monitor.students.m"] == 3
    assert row["match.m"] > 0


def test_a_local_stage_reads_other_teachers_and_its_own_taps(tmp_path: Path) -> None:
    stage = {
        "scope": "local",
        "matches": {
            "main": {"student": "output", "objective": "pull"},
            "twin": {"student": "output", "objective": "pull", "teacher": "twin:output"},
            "own": {"student": "output", "objective": "pull", "teacher": "student:output"},
        },
    }
    row = run(tmp_path, stage, teachers={"twin": {"ref": "stack:3"}}).rows[0]
    assert row["match.twin"] == row["match.main"] > 0
    assert row["match.own"] == 0
    assert sum(row[f"site.layers.{i}"] for i in range(3)) == pytest.approx(row["loss"])


def test_a_teacher_that_no_match_reads_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = registry().resolve(registry().get("source", "stack"))
    module = __import__(plugin.__module__)
    ran: list[str] = []
    run_teacher = module.StackTeacher.run
    monkeypatch.setattr(
        module.StackTeacher, "run", lambda self, *args: (ran.append(self.ref), run_teacher(self, *args))[1]
    )
    first(tmp_path / "a", {**PULL, "objective": "seen", "teacher": None}, evaluate__metric_options={})
    evaluated = len(ran)
    ran.clear()
    first(tmp_path / "b", PULL)
    assert len(ran) >= evaluated + 6


def test_without_a_teacher_a_student_is_trained_on_the_data(tmp_path: Path) -> None:
    match = {"student": "layers.2.output", "objective": "pull", "teacher": "batch:x"}
    done = run(tmp_path, {"matches": {"m": match}}, teacher="none")
    assert done.conversion.sides.teacher is None
    assert all(row["grad_norm"] > 0 for row in done.rows)
    assert done.summary["changed_tensors"] == 9


def test_teacher_values_are_shared_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vision 2.17: the cache lived and died with one stage."""
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    changes = {"data__options": {"numbers": True}, "runtime__cache": "shared"}
    one = run(tmp_path / "a", {"matches": {"m": LAST}}, **changes)
    assert one.summary["teacher_cache"] == {"hits": 0, "writes": 48}
    two = run(tmp_path / "b", {"matches": {"m": LAST}, "micro_batch": 3}, **changes)
    assert two.summary["teacher_cache"] == {"hits": 18, "writes": 0}
    assert [r["loss"] for r in two.rows] == pytest.approx([r["loss"] for r in one.rows], rel=1e-5)
