"""What a gate could earn that knew the errors: divergence from the teacher at equal multiply-adds, gates included.

    python benchmarks/quality/acm_oracle.py --budgets 0.25 0.5 --out benchmarks/out/acm_oracle

The model, learners and gates of acm_fashion.yaml before anything is trained end to end; teacher first:
teacher_acm_vit.yaml. `fixed`: a number per module by what the answer loses, as the control's; `place`: a number per
module and place by the mean of true losses; `gates`: as trained; `shuffled`: the same choices at other positions by
chance; `oracle`: by the true losses of every position, which no gate knows; `distances`: by true distances, without
what the answer makes of them.

Legend: T positions, L positions of a sample, K choices of a gate.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import xarch
from xarch import Batch, Options, StageContext, StageKind, StageOutcome, StageRequest, hookimpl
from xarch.cli.session import add_plugin_files
from xarch_acm.answers import acm_student, answer, divergence, reference
from xarch_acm.labels import lost
from xarch_acm.module import AdaptiveModule, Point
from xarch_acm.student import AcmStudent, Points
from xarch_acm.tables import fewest, losses_of, shifted
from xarch_acm.threshold import distances_of

SETTINGS = {
    "recipe": "acm",
    "teacher": "run:benchmarks/out/teachers/acm_vit",
    "student": {"target": "acm", "options": {"modules": ["mlp", "qkv", "o"]}},
    "data": {"ref": "images:/usr/share/datasets/fashion-mnist"},
    "stages": {
        "sort": {"share": None, "units": 1000},
        "distil": {"share": None, "units": 4800, "batch": 32, "checkpoint_every": 1000},
        "threshold": {"options": {"samples": 256}, "batch": 64},
        "gates": {"share": None, "units": 4800, "batch": 32, "checkpoint_every": 1000},
        "shifts": {"skip": True},
        "budget": {"skip": True},
        "tables": {"skip": True},
        "oracle": {"kind": "acm-oracle", "batch": 256},
    },
    "evaluate": {"samples": 200, "batch": 200, "baseline": False, "controls": False},
    "export": {"profiles": []},
    "runtime": {"device": "cpu", "tensorboard": False},
}
PRICES = (1e-15, 1e6)
HALVINGS = 48


class OracleOptions(Options):
    """Options of an ``acm-oracle`` stage."""

    samples: int = 2048
    calibration: int = 256


class Oracle(StageKind):
    """Measures the divergence from the teacher on validation samples, for every way to choose. Trains nothing."""

    Options = OracleOptions

    def units(self, request: StageRequest) -> int:
        return int(request.options.samples) * request.units_per_sample

    def run(self, context: StageContext) -> StageOutcome:
        student = acm_student(context)
        student.module.eval()
        share = student.options.budget
        known, judged = (context.calibration(context.options.calibration), context.validation(context.options.samples))
        with torch.no_grad():
            fixed = fewest(losses_of(student, known, context), student.adaptive, share)
            shift, _ = shifted(student, known, share)
            wanted = [reference(student, batch, context) for batch in judged]
        found = distances_of(student, context, judged)
        errors = {path: d.double() for path, (d, _) in found.items()}
        weights = {path: s.double() for path, (_, s) in found.items() if s is not None}
        true = {path: lost(errors[path], weights[path], 1.0) for path in errors}
        samples = sum(map(len, judged))
        place = {path: v.unflatten(0, (samples, -1)).mean(0).repeat(samples, 1) for path, v in true.items()}
        blind = {path: lost(errors[path], weights[path].mean().expand(len(errors[path])), 1.0) for path in errors}
        ways: dict[str, tuple[Points, Mapping[str, Tensor] | None]] = {
            "fixed": ({path: Point(fixed=k) for path, k in fixed.items()}, None),
            "place": ({}, chosen(student, place, share, gates=False)),
            "gates": (dict.fromkeys(student.adaptive, Point(shift=shift)), None),
            "shuffled": (dict.fromkeys(student.adaptive, Point(shift=shift, shuffled=True)), None),
            "oracle": ({}, chosen(student, true, share, gates=True)),
            "distances": ({}, chosen(student, blind, share, gates=True)),
        }
        figures = {}
        for name, (points, counts) in ways.items():
            figures[name] = measured(student, judged, wanted, points, counts)
        return StageOutcome(metrics=figures)


def chosen(student: AcmStudent, losses: Mapping[str, Tensor], share: float, *, gates: bool) -> dict[str, Tensor]:
    """Return path -> learners of every position [T], the cheapest at the least price that is within a budget.

    Args:
        losses: [T, K]. gates: whether those take their share of it.
    """
    whole = sum(m.cost * m.learners * len(losses[path]) for path, m in student.adaptive.items())

    def at(price: float) -> tuple[dict[str, Tensor], float]:
        ran, counts = 0.0, {}
        for path, module in student.adaptive.items():
            values = losses[path]
            cost = values + price * module.gate.price * torch.arange(values.shape[-1], dtype=values.dtype)
            counts[path] = cost.argmin(-1) + module.least
            ran += float(counts[path].sum()) * module.cost + gates * len(values) * module.gate_cost
        return counts, ran / whole

    low, high = map(math.log, PRICES)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(math.exp(middle))[1] > share else (low, middle)
    return at(math.exp(high))[0]


def measured(
    student: AcmStudent,
    batches: Sequence[Batch],
    wanted: Sequence[Tensor],
    points: Points,
    counts: Mapping[str, Tensor] | None,
) -> float:
    """Return the mean divergence from the teacher in nats, with modules run as told or so many learners each."""
    total, begin = 0.0, 0
    samples = sum(map(len, batches))
    with torch.no_grad():
        for batch, target in zip(batches, wanted, strict=True):
            rows = slice(begin, begin + len(batch))
            here = {path: k.unflatten(0, (samples, -1))[rows] for path, k in (counts or {}).items()}
            with injected(student.adaptive, here):
                total += divergence(target, answer(student, batch, points)) * len(batch)
            begin += len(batch)
    return total / samples


@contextmanager
def injected(modules: Mapping[str, AdaptiveModule], counts: Mapping[str, Tensor]) -> Iterator[None]:
    """Run so many learners [B, L] at every position, until the end of the block."""

    def forward(module: AdaptiveModule, count_BL: Tensor) -> Any:
        return lambda x: module.out(module.hidden(x) * (count_BL[..., None] > module.owner_F))

    for path, count_BL in counts.items():
        modules[path].forward = forward(modules[path], count_BL)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for path in counts:
            del modules[path].forward


@hookimpl
def xarch_register(registry: Any) -> None:
    registry.stage("acm-oracle", load=f"{__name__}:Oracle", summary="what a gate could earn that knew the errors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/acm_oracle"))
    said = parser.parse_args()
    add_plugin_files((__file__,))
    for budget in said.budgets:
        for places in (True, False):
            for seed in said.seeds:
                name = f"{round(100 * budget)}-{'places' if places else 'blind'}-{seed}"
                own = {"student.options.budget": budget, "student.options.places": places, "seed": seed}
                if not (said.out / name).exists():
                    xarch.convert(SETTINGS, overrides=own, out=said.out / name)
                [file] = (said.out / name / "stages").glob("*-oracle/summary.json")
                figures = json.loads(file.read_text(encoding="utf-8"))["metrics"]
                print(name, "  ".join(f"{way} {value:.4f}" for way, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
