"""Training of a field file from a folder of posed images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from xarch import UsageError
from xarch_pvd.data.datasets.fit import fit_box
from xarch_pvd.data.datasets.open import open_posed
from xarch_pvd.data.datasets.posed import PosedImages
from xarch_pvd.data.posed_views import PosedViews, near_world, posed_views
from xarch_pvd.source.field_file import save_field_file
from xarch_pvd.targets.representations import build_field, options_of
from xarch_pvd.targets.representations.records import to_file
from xarch_pvd.train.training import Pixels, TrainingOptions, train_field


def train_from_pictures(
    folder: str,
    *,
    arch: str,
    options: Mapping[str, Any],
    steps: int,
    seed: int,
    out: Path,
    downscale: int = 1,
    kind: str = "auto",
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> float:
    """Train a field and write it; return the CPU seconds of training.

    Cameras far from the origin are moved to it before conversion to 32-bit; the file records the offset.

    Raises:
        UsageError: the format or representation is unknown, or camera rays miss the box.
    """
    chosen = options_of(arch, options, "options")
    _reserve(out)
    torch.manual_seed(seed)
    posed = open_posed(folder, split="train", downscale=downscale, kind=kind)
    world = near_world(posed)
    views = posed_views(folder, world, "folder", downscale, kind)
    box = fit_box(posed.in_world(world)).aabb
    field = build_field(arch, chosen, aabb=[box[:3], box[3:]])
    spent = train_field(
        field, training_pixels(posed, views), TrainingOptions(steps=steps, seed=seed), progress=progress
    )
    details = {"trained_from": Path(folder).name, "steps": steps, "seed": seed, "cpu_seconds": round(spent, 1)}
    save_field_file(out, to_file(field, chosen.model_dump(mode="json"), details), views.facts, details)
    return spent


def _reserve(out: Path) -> None:
    """Check that the output can be written before training.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            return
    except OSError as e:
        raise UsageError(f"{out} cannot be written: {e.strerror or e}", "choose another file with --out") from e


def training_pixels(posed: PosedImages, views: PosedViews) -> Pixels:
    """Return every training pixel that is not masked."""
    return Pixels.of(views.train, posed.rgba, posed.mask)
