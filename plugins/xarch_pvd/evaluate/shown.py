"""The views of an evaluation as a report shows them: figures of every view, pictures and error maps of a few."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FIRST = 2
"""Views at the beginning whose pictures are kept; the worst one is always kept too."""
SIDE = 320
"""Longest side of a kept picture, pixels."""
QUANTILE = 0.995
"""Share of the errors that the scale of a map reaches; the rest is drawn in its last colour."""
MAPS = {"error": ("student", "teacher"), "teacher_error": ("teacher", "truth"), "student_error": ("student", "truth")}
"""Map -> the two pictures whose absolute difference, mean over the colours, it shows."""
COLOURS = "magma"


class ShownViews:
    """Collects the views of one evaluation; at most three are held as pictures."""

    def __init__(self) -> None:
        self._figures: list[dict[str, dict[str, float]]] = []
        self._pictures: dict[int, dict[str, Tensor]] = {}
        self._worst: int | None = None

    def add(self, pictures: Mapping[str, Tensor], figures: dict[str, dict[str, float]]) -> None:
        """One view: pictures [height, width, 3] in [0, 1] of teacher, student and perhaps truth; figures of each."""
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
        """JSON of every view; ``limits`` is the error at the end of a map's colours, one for all views."""
        maps = {view: _maps(pictures) for view, pictures in self._pictures.items()}
        limits = {
            # Both maps against the pictures have one scale: they are there to be compared.
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
    """Errors [height, width] of the pairs that are there."""
    return {
        name: (pictures[a] - pictures[b]).abs().mean(dim=-1)
        for name, (a, b) in MAPS.items()
        if a in pictures and b in pictures
    }


def _limit(errors: list[Tensor]) -> float:
    """1, 2 or 5 times a power of ten above most errors; 1 without any."""
    largest = max((float(torch.quantile(e.flatten()[: 1 << 24], QUANTILE)) for e in errors), default=1.0)
    if largest <= 0:
        return 0.01
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= largest)


def _coloured(error: Tensor, limit: float) -> Tensor:
    """An error map [height, width] in colours [height, width, 3]."""
    from matplotlib import colormaps

    return torch.from_numpy(colormaps[COLOURS]((error / limit).clamp(0, 1).numpy())[..., :3])


def _png(picture: Tensor) -> str:
    """Base64 of a PNG, at most :data:`SIDE` pixels wide and high."""
    from PIL import Image

    image = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
