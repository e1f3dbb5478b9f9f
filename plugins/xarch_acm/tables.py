"""Stage kind ``acm-tables``: for every budget, how far gates are shifted, and how many learners each module has without
them.

Legend: T positions, K choices of a gate, V logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, Options, StageContext, StageKind, StageOutcome, StageRequest, UsageError
from xarch_acm.answers import acm_student, all_learners, answer, divergence, reference
from xarch_acm.exits import Exits, least_for
from xarch_acm.module import Point
from xarch_acm.spent import Counted
from xarch_acm.student import GATE, AcmStudent

HALVINGS = 32
ROUNDS = 6
"""Most measurements of a shift."""
CLOSE = 0.004
"""A shift that runs so much less than a budget, or not as much less, is taken."""
FARTHEST = 64.0
"""Largest shift."""


class TablesOptions(Options):
    """Options of an ``acm-tables`` stage."""

    samples: int = Field(64, ge=1, le=10**6, description="calibration samples to measure on, at most those there are")
    fixed: bool = Field(
        True,
        description="measure what each module loses with every number of learners, a pass for each, to decide fixed "
        "numbers; false: by what gates estimate, or as they are",
    )


class Tables(StageKind):
    """Decides ``tables`` on calibration samples: a shift by bisection, and learners per module by taking away, again
    and again, the learner whose loss (divergence from the teacher, the other modules whole) is least for its cost.
    Trains nothing."""

    Options = TablesOptions

    def units(self, request: StageRequest) -> int:
        return int(request.options.samples) * request.units_per_sample

    def work(self, request: StageRequest, *, student: float, teacher: float) -> float:
        """Forward passes: for every budget, and for every module and number of learners, about ten sites of four."""
        shifts = 3 * ROUNDS / 2
        return teacher + student * (shifts + 4 * len(request.sites or range(10)) * request.options.fixed)

    def run(self, context: StageContext) -> StageOutcome:
        student = acm_student(context)
        batches = context.calibration(context.options.samples)
        if not batches:
            raise UsageError(
                f"stage {context.name}: there are no calibration samples", "raise the data's held-out share"
            )
        student.module.eval()
        if student.exits is not None:
            return _early(student, student.exits, batches)
        with torch.no_grad():
            losses = losses_of(student, batches, context) if context.options.fixed else {}
        rows: list[dict[str, Any]] = []
        figures: dict[str, float] = {}
        per_site: dict[str, dict[str, float]] = {}
        for share in student.shares():
            name, known = f"{round(100 * share)}", losses
            row: dict[str, Any] = {"budget": share, "shift": 0.0}
            if not student.ungated:
                shift, made = shifted(student, batches, share)
                if not losses and student.options.gates == "estimate":
                    known = {path: _estimated(m, made[path]) for path, m in student.adaptive.items()}
                figures |= {f"shift.{name}": shift, f"gated.{name}": executed(student.adaptive, made, shift)}
                if share == student.options.budget:
                    per_site |= histogram(student.adaptive, made, shift)
                filled = {path: _reached(m, made[path], shift) for path, m in student.adaptive.items()}
                row |= {"shift": shift, "filled": filled}
            fixed = fewest(known, student.adaptive, share - student.always()) if known else student.fixed[share]
            per_site[f"fixed.{name}"] = {path: float(k) for path, k in fixed.items()}
            rows.append(row | {"fixed": fixed})
        return StageOutcome(metrics=figures, decisions={"tables": rows}, per_site=per_site)


def _early(student: AcmStudent, exits: Exits, batches: Sequence[Batch]) -> StageOutcome:
    """Decide for every budget how sure an answer must be that leaves early."""
    with torch.no_grad():
        sure = torch.cat([student.sure(batch.seen_by("student")).flatten(0, -2) for batch in batches])
    found = {share: least_for(sure, exits.shares(), share) for share in student.shares()}
    rows = [{"budget": share, "shift": least, "fixed": student.fixed[share]} for share, least in found.items()]
    return StageOutcome(
        metrics={f"sure.{round(100 * share)}": least for share, least in found.items()}, decisions={"tables": rows}
    )


def shifted(student: AcmStudent, batches: Sequence[Batch], share: float) -> tuple[float, dict[str, Tensor]]:
    """Return a shift at which what runs is just within a budget, and path -> what its gate gives [T, K] there. A gate
    reads what the gates before it let through, so every round measures at the shift that the one before it found; the
    one within the budget that runs most counts, or else the one that runs least."""
    shift = student.shifts[share]
    measured: list[tuple[float, float, dict[str, Tensor]]] = []
    for _ in range(ROUNDS):
        with torch.no_grad(), student.at(dict.fromkeys(student.adaptive, Point(shift=shift))):
            made = _gate_values(student, batches)
        measured.append((executed(student.adaptive, made, shift), shift, made))
        if share - CLOSE <= measured[-1][0] <= share:
            break
        shift = shift_for(student.adaptive, made, share - CLOSE / 2)
    within = [each for each in measured if each[0] <= share]
    _, shift, made = max(within, key=lambda m: m[0]) if within else min(measured, key=lambda m: m[0])
    return shift, made


def _gate_values(student: AcmStudent, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return path -> what its gate gives [T, K]."""
    parts: dict[str, list[Tensor]] = {path: [] for path in student.adaptive}

    def take(name: str, value: Any) -> None:
        parts[name.rpartition(".")[0]].append(value.flatten(0, -2))

    for batch in batches:
        student.run(batch.seen_by("student"), {f"{path}.{GATE}" for path in student.adaptive}, take)
    return {path: torch.cat(found) for path, found in parts.items()}


def _estimated(module: Counted, made: Tensor) -> dict[int, float]:
    """Return learners -> what the answer loses by the mean of a gate's estimates [T, K]."""
    return dict(enumerate(made.double().exp().mean(0).tolist(), module.least))


def _reached(module: Counted, made: Tensor, shift: float) -> list[float]:
    """Return the share of positions that runs each learner, from what a gate gives [T, K]."""
    count_T = module.gate.scores(made, shift).argmax(-1) + module.least
    return [float((count_T > n).double().mean()) for n in range(module.learners)]


def histogram(modules: Mapping[str, Counted], made: Mapping[str, Tensor], shift: float) -> dict[str, dict[str, float]]:
    """Return figure -> path -> value: the mean and the deviation of learners over positions, and the share of positions
    that run each number of them."""
    found: dict[str, dict[str, float]] = {}
    for path, module in modules.items():
        count_T = (module.gate.scores(made[path], shift).argmax(-1) + module.least).double()
        figures = {"mean": float(count_T.mean()), "deviation": float(count_T.std(correction=0))}
        figures |= {f"share.{k}": float((count_T == k).double().mean()) for k in range(module.learners + 1)}
        for name, value in figures.items():
            found.setdefault(name, {})[path] = value
    return found


def executed(modules: Mapping[str, Counted], logits: Mapping[str, Tensor], shift: float) -> float:
    """Return the share of all learners' multiply-adds that shifted gates and what they choose take, from what they give
    [T, K]."""
    ran = whole = 0.0
    for path, module in modules.items():
        found = logits[path]
        best = module.gate.scores(found, shift).argmax(-1) + module.least
        ran += float(best.double().sum()) * module.cost + len(found) * module.gate_cost
        whole += len(found) * module.learners * module.cost
    return ran / whole


def shift_for(modules: Mapping[str, Counted], logits: Mapping[str, Tensor], share: float) -> float:
    """Return the shift whose executed share is nearest to ``share``; more shift never means fewer learners."""
    low, high = -FARTHEST, FARTHEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if executed(modules, logits, middle) < share else (low, middle)
    return min((low, high), key=lambda shift: abs(executed(modules, logits, shift) - share))


def losses_of(student: AcmStudent, batches: Sequence[Batch], context: StageContext) -> dict[str, dict[int, float]]:
    """Return path -> learners -> divergence from the teacher with so many in this module and all in the others; without
    a teacher, from the student with all learners."""
    whole = all_learners(student)
    found: dict[str, dict[int, float]] = {path: {} for path in student.adaptive}
    wanted = [reference(student, batch, context) for batch in batches]
    total = sum(m.learners + 1 - m.least for m in student.adaptive.values())
    done = 0
    for path, module in student.adaptive.items():
        for learners in range(module.least, module.learners + 1):
            points = {**whole, path: Point(fixed=learners)}
            sums = [divergence(w, answer(student, b, points)) for w, b in zip(wanted, batches, strict=True)]
            found[path][learners] = sum(sums) / len(sums)
            done += 1
            context.progress(done, total, path)
    return found


def fewest(losses: Mapping[str, Mapping[int, float]], modules: Mapping[str, Counted], share: float) -> dict[str, int]:
    """Return path -> learners within a budget: of all learners, those are taken away first that are missed least for
    their multiply-adds; then those come back that are missed most and for which there is still room. If noise makes a
    smaller module look better, it counts as equal."""
    kept = {path: module.learners for path, module in modules.items()}
    falling = {path: dict(rows) for path, rows in losses.items()}
    for rows in falling.values():
        for k in sorted(rows, reverse=True)[1:]:
            rows[k] = max(rows[k], rows[k + 1])
    most = share * sum(m.cost * m.learners for m in modules.values())

    def missed(path: str, learners: int) -> float:
        return (falling[path][learners - 1] - falling[path][learners]) / modules[path].cost

    def room() -> float:
        return most + 1e-6 - sum(modules[path].cost * k for path, k in kept.items())

    while room() < 0:
        able = [path for path, k in kept.items() if k - 1 in falling[path]]
        if not able:
            break
        kept[min(able, key=lambda path: missed(path, kept[path]))] -= 1
    while True:
        fits = [path for path, k in kept.items() if k < modules[path].learners and modules[path].cost <= room()]
        gains = {path: gain for path in fits if (gain := missed(path, kept[path] + 1)) > 0}
        if not gains:
            return kept
        kept[max(gains, key=gains.__getitem__)] += 1
