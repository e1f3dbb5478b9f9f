"""Parity of exported graphs with the student: random points, rays of held-out views, and a whole image.

The reference is the student's taps, not the graph's torch module, so the comparison covers everything that the graph
does differently (the box it crosses, samples in empty cells).

Legend: N points, R rays, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from xarch import Batch, ExportGraph, Measure, ParityCase, Profile
from xarch_field.model import occupancy as occupancies
from xarch_field.student import FieldStudent
from xarch_pvd.evaluate.metric import psnr

POINTS = (2, 1, 257, 10_000)
RAYS = 1024
"""Rays per call for dynamic shapes."""
SIDE = 64
"""Pixels along the longer side of the image."""
RENDERED = {"float32": 60.0, "float16": 40.0, "int8": 30.0}
"""Minimum PSNR of the image in dB, by dtype of the weights."""

LOOSE = {"float16": 0.02, "int8": 0.1}
"""Maximum relative deviation of single outputs below float32. It is loose, because density is the exponential of what
the graph computes; the image is the decisive check."""

POINT_TAPS = {"sigma": "points.sigma", "rgb": "points.rgb"}
RAY_TAPS = {"rgb": "rays.rgb", "depth": "rays.depth", "acc": "rays.acc"}
"""Output of a graph -> the student's tap that it reproduces."""

Arrays = Mapping[str, np.ndarray]


def field_parity(
    student: FieldStudent, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
) -> Iterable[ParityCase]:
    """Yield cases of ``points`` and ``rays``; the view of the first batch is rendered completely."""
    known = {g.name: g for g in graphs}
    yield from _points(student, known["points"], profile)
    yield _picture(known["rays"], thinned(batches[0]), profile)
    for batch in batches[1:]:
        yield _rays(known["rays"], batch, profile)


def _points(student: FieldStudent, graph: ExportGraph, profile: Profile) -> Iterable[ParityCase]:
    """Yield random points, most of them in occupied cells; in float32 every single point must match."""
    generator = torch.Generator().manual_seed(5)
    grid = student.field.occupancy.cpu()
    exact = profile.dtype == "float32"
    measures = (
        Measure("largest relative error of sigma", _off("sigma", relative=True), maximum=1e-4 if exact else None),
        Measure("largest error of rgb", _off("rgb"), maximum=1e-5 if exact else None),
    )
    for count in POINTS if graph.dynamic else (len(graph.inputs["xyz"]),):
        xyz_N3 = student.field.to_world(occupancies.sample(grid, count, generator))
        dirs_N3 = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
        inputs = {"xyz": xyz_N3.numpy(), "dir": dirs_N3.numpy()}
        yield ParityCase(
            graph.name,
            {"points": count},
            drive_rows(graph, inputs),
            measures=measures,
            rel_l2=LOOSE.get(profile.dtype),
            batch=Batch({"xyz": xyz_N3, "dirs": dirs_N3}, count),
            taps=POINT_TAPS,
        )


def _picture(graph: ExportGraph, batch: Batch, profile: Profile) -> ParityCase:
    """Return the case of a whole view, rendered by several calls of the graph."""
    shape = {"height": batch.meta["height"], "width": batch.meta["width"]}
    return ParityCase(
        graph.name,
        shape,
        drive_rows(graph, _inputs(batch)),
        measures=picture_measures(batch["background"][0].numpy(), profile),
        rel_l2=LOOSE.get(profile.dtype),
        batch=rays_of(batch, int(graph.metadata["samples"])),
        taps=RAY_TAPS,
    )


def rays_of(batch: Batch, samples: int) -> Batch:
    """Return only the rays of a view, with the number of samples of a graph."""
    kept = {key: batch[key] for key in ("origins", "dirs", "background")}
    return Batch(kept, len(batch), {**batch.meta, "samples": samples})


def picture_measures(background_3: np.ndarray, profile: Profile) -> list[Measure]:
    """Return measures of an image: PSNR, and deviation of empty pixels from the background."""

    def haze(seen: Arrays, expected: Arrays) -> float:
        empty_P = expected["acc"] == 0
        return float(np.abs(seen["rgb"][empty_P] - background_3).max()) if empty_P.any() else 0.0

    return [
        Measure("psnr", rendered_psnr, minimum=RENDERED[profile.dtype], unit="dB"),
        Measure("empty pixels", haze, maximum=1e-3),
    ]


def _rays(graph: ExportGraph, batch: Batch, profile: Profile) -> ParityCase:
    """Return the case of rays spread over another view, in one call."""
    count = RAYS if graph.dynamic else len(graph.inputs["origins"])
    rows = torch.linspace(0, len(batch) - 1, min(count, len(batch))).long()
    part = Batch({k: v[rows] for k, v in batch.tensors.items()}, len(rows))
    return ParityCase(
        graph.name,
        {"rays": len(rows)},
        drive_rows(graph, _inputs(part)),
        rel_l2=LOOSE.get(profile.dtype),
        batch=rays_of(part, int(graph.metadata["samples"])),
        taps=RAY_TAPS,
    )


def thinned(batch: Batch, side: int = SIDE) -> Batch:
    """Subsample a view to at most ``side`` pixels along its longer side: every n-th row and column."""
    height, width = batch.meta["height"], batch.meta["width"]
    scale = min(1.0, side / max(height, width))
    rows, columns = (
        ((torch.arange(max(1, round(n * scale))) + 0.5) * n / max(1, round(n * scale))).long() for n in (height, width)
    )
    pixels_P = (rows[:, None] * width + columns).flatten()
    tensors = {k: v[pixels_P] for k, v in batch.tensors.items()}
    return Batch(tensors, len(pixels_P), {"height": len(rows), "width": len(columns)})


def rendered_psnr(seen: Arrays, expected: Arrays) -> float:
    """Return the PSNR of two images in dB, at most 100."""
    return psnr(torch.from_numpy(seen["rgb"]), torch.from_numpy(expected["rgb"]))


def _off(name: str, *, relative: bool = False) -> Callable[[Arrays, Arrays], float]:
    """Measure the largest absolute or relative difference of one output."""

    def largest(seen: Arrays, expected: Arrays) -> float:
        off, size = np.abs(seen[name] - expected[name]), np.abs(expected[name])
        return float((off / np.where(size > 0, size, 1) if relative else off).max())

    return largest


def _inputs(batch: Batch) -> dict[str, np.ndarray]:
    return {
        "origins": batch["origins"].numpy(),
        "directions": batch["dirs"].numpy(),
        "background": batch["background"][0].numpy(),
    }


def drive_rows(graph: ExportGraph, given: Arrays) -> Callable[[Any], dict[str, np.ndarray]]:
    """Call a graph over all rows; for static shapes, the last call is padded."""
    rowwise = [name for name in given if name != "background"]
    total = len(given[rowwise[0]])
    size = (RAYS if graph.name == "rays" else total) if graph.dynamic else len(graph.inputs[rowwise[0]])

    def drive(call: Any) -> dict[str, np.ndarray]:
        parts = []
        for start in range(0, total, size):
            rows = np.arange(start, start + size)
            rows = rows[rows < total] if graph.dynamic else rows.clip(max=total - 1)
            parts.append(call(graph.name, {k: v[rows] if k in rowwise else v for k, v in given.items()}))
        return {name: np.concatenate([part[name] for part in parts])[:total] for name in graph.outputs}

    return drive
