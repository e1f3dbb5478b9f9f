"""Which way of quantising serves a student best: each is built and measured on calibration data."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from xarch.contracts.export import ParityCase, Profile
from xarch.errors import PlanError
from xarch.export.activations import quantise_activations
from xarch.export.calibration import calibrate
from xarch.export.dynamic import quantise_dynamically
from xarch.export.quantise import quantise
from xarch.export.session import RuntimeFailure, Sessions
from xarch.export.weights import WeightStore, externalise

Models = Mapping[str, ir.Model]
REPEATS = 5
CLOSE = 1.05
"""Ratio of times below which the more accurate form is preferred."""


@dataclass(frozen=True)
class Measured:
    """Figures of one form: relative L2 distance of all outputs from those in float32, and CPU ms over all cases."""

    rel_l2: float
    cpu_ms: float


def integers(
    models: Models, profile: Profile, cases: Callable[[], Iterable[ParityCase]], *, threads: int, limit: float
) -> tuple[Models, dict[str, int], str, dict[str, Measured]]:
    """Return the graphs in the profile's best 8-bit form, the products per graph, its name and what was measured.

    Of the forms within ``limit`` the fastest is kept; without any, the most accurate. A single form is not measured.

    Args:
        models: in float32; unchanged.
        limit: largest relative L2 distance.

    Raises:
        PlanError: no form can be built.
    """
    built: dict[str, tuple[Models, dict[str, int]]] = {}
    for form in profile.integers:
        built[form] = _built(form, models, profile, cases, threads)
    if len(built) == 1:
        form, (made, counts) = next(iter(built.items()))
        return made, counts, form, {}
    kept = list(cases())
    plain = _run(models, profile, kept, threads)
    figures: dict[str, Measured] = {}
    failed: list[str] = []
    for form, (made, _) in built.items():
        try:
            figures[form] = _compared(_run(made, profile, kept, threads), plain)
        except RuntimeFailure as e:
            failed.append(f"{form}: {e}")
    if not figures:
        raise PlanError(f"export {profile.name}: the runtime runs none of the 8-bit forms; {'; '.join(failed)}")
    chosen = _best(figures, limit)
    made, counts = built[chosen]
    return made, counts, chosen, figures


def _built(
    form: str, models: Models, profile: Profile, cases: Callable[[], Iterable[ParityCase]], threads: int
) -> tuple[Models, dict[str, int]]:
    made = {name: model.clone() for name, model in models.items()}
    if form == "dynamic":
        return made, {name: quantise_dynamically(model) for name, model in made.items()}
    if form == "activations":
        return quantise_activations(made, cases(), profile.provider, threads=threads)
    if form != "static":
        raise PlanError(f"export {profile.name}: no 8-bit form {form!r}", "static, activations or dynamic")
    with tempfile.TemporaryDirectory() as folder:
        ranges = calibrate(made, cases(), Path(folder), profile.provider, threads=threads)
    return made, {name: quantise(model, ranges) for name, model in made.items()}


def _run(
    models: Models, profile: Profile, cases: Sequence[ParityCase], threads: int
) -> tuple[list[dict[str, np.ndarray]], float]:
    """Return the outputs of every case, and the least CPU seconds for all cases."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        with WeightStore(folder / "weights.data") as store:
            for name, model in models.items():
                copy = model.clone()
                externalise(copy, store)
                ir.save(copy, folder / f"{name}.onnx")
        sessions = Sessions(folder, profile.provider, threads=threads, optimise=True)
        outputs = [case.drive(sessions) for case in cases]
        least = float("inf")
        for _ in range(REPEATS):
            started = time.process_time()
            for case in cases:
                case.drive(sessions)
            least = min(least, time.process_time() - started)
    return outputs, least


def _compared(
    seen: tuple[list[dict[str, np.ndarray]], float], plain: tuple[list[dict[str, np.ndarray]], float]
) -> Measured:
    square = whole = 0.0
    for got, wanted in zip(seen[0], plain[0], strict=True):
        for name, value in wanted.items():
            square += float(np.square(got[name].astype(np.float64) - value).sum())
            whole += float(np.square(value.astype(np.float64)).sum())
    return Measured(float(np.sqrt(square / max(whole, 1e-30))), 1e3 * seen[1])


def _best(figures: Mapping[str, Measured], limit: float) -> str:
    fit = {form: m for form, m in figures.items() if m.rel_l2 <= limit}
    if not fit:
        return min(figures, key=lambda form: figures[form].rel_l2)
    least = min(m.cpu_ms for m in fit.values())
    return min((f for f in fit if fit[f].cpu_ms <= CLOSE * least), key=lambda form: fit[form].rel_l2)
