"""Samples of an evaluation for the report: figures of every view, images and error maps of a few."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FIRST = 2
"""Number of leading views whose images are kept, in addition to the worst one."""
SIDE = 320
"""Longest side of a kept image, pixels."""
QUANTILE = 0.995
"""Quantile of the errors covered by a map's scale; larger errors have its last colour."""
MAPS = {"error": ("student", "teacher"), "teacher_error": ("teacher", "truth"), "student_error": ("student", "truth")}
"""Error map -> the two images whose absolute difference, averaged over colour channels, it shows."""
COLOURS = "magma"


class ShownViews:
    """Collects the views of one evaluation; holds the images of at most three."""

    def __init__(self) -> None:
        self._figures: list[dict[str, dict[str, float]]] = []
        self._pictures: dict[int, dict[str, Tensor]] = {}
        self._worst: int | None = None

    def add(self, pictures: Mapping[str, Tensor], figures: dict[str, dict[str, float]]) -> None:
        """Add a view: images [height, width, 3] in [0, 1] of teacher, student and optionally truth, with figures."""
        view = len(self._figures)
        self._figures.append(figures)
        worst = self._worst
        worse = worst is None or figures["student"]["psnr_teacher"] < self._figures[worst]["student"]["psnr_teacher"]
        if worse:
            if worst is not None and worst >= FIRST:
                del self._pictures[worst]
            self._worst = view
        if worse or view < FIRST:
            self._pictures[view] = {n: p.cpu() for n, p in pictures.items() if n in ("truth", "teacher", "student")}

    def samples(self) -> list[dict[str, Any]]:
        """Return JSON data of every view; ``limits`` is the error at the end of a map's scale, shared by all views."""
        maps = {view: _maps(pictures) for view, pictures in self._pictures.items()}
        limits = {
            # Both maps against the ground truth share one scale so that they can be compared.
            "teacher": _limit([m["error"] for m in maps.values()]),
            "truth": _limit([e for m in maps.values() for n, e in m.items() if n != "error"]),
        }
        out: list[dict[str, Any]] = []
        for view, figures in enumerate(self._figures):
            sample: dict[str, Any] = {"view": view, "worst": view == self._worst, "figures": figures}
            if view in self._pictures:
                png = {name: _png(picture) for name, picture in self._pictures[view].items()}
                png |= {n: _png(_coloured(e, limits[MAPS[n][1]])) for n, e in maps[view].items()}
                height, width = self._pictures[view]["teacher"].shape[:2]
                sample |= {"png": png, "limits": limits, "size": [width, height]}
            out.append(sample)
        return out


def _maps(pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return error maps [height, width] of the available pairs."""
    return {
        name: (pictures[a] - pictures[b]).abs().mean(dim=-1)
        for name, (a, b) in MAPS.items()
        if a in pictures and b in pictures
    }


def _limit(errors: list[Tensor]) -> float:
    """Return 1, 2 or 5 times a power of ten above most errors; 1 without errors."""
    largest = max((float(torch.quantile(e.flatten()[: 1 << 24], QUANTILE)) for e in errors), default=1.0)
    if largest <= 0:
        return 0.01
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= largest)


def _coloured(error: Tensor, limit: float) -> Tensor:
    """Colour an error map [height, width] as [height, width, 3]."""
    from matplotlib import colormaps

    return torch.from_numpy(colormaps[COLOURS]((error / limit).clamp(0, 1).numpy())[..., :3])


def _png(picture: Tensor) -> str:
    """Encode as a base64 PNG of at most :data:`SIDE` pixels per side."""
    from PIL import Image

    image = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
