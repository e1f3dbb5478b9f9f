"""A small teacher, pictures and batches generated in code: nothing is trained or downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from xarch import Batch
from xarch_image.facts import ImageFacts

CLASSES = ("disc", "cross", "stripes")
SIDE = 32
SMALLEST = "test_resnet"
"""The smallest residual network of timm, made for tests."""


def tiny_classifier(folder: Path, *, name: str = SMALLEST, seed: int = 0) -> str:
    """Write a random classifier of 32-pixel images in three classes; return its reference ``timm:…``."""
    import timm

    from xarch import save_weights

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = timm.create_model(name, pretrained=False, num_classes=len(CLASSES))
    file = folder / "teacher.safetensors"
    save_weights(net.state_dict(), file)
    return f"timm:{name}?checkpoint={file}&size={SIDE}"


def picture(kind: int, generator: np.random.Generator) -> np.ndarray:
    """Return a noisy picture [32, 32, 3] uint8 of a class of :data:`CLASSES` at a random place."""
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx = generator.uniform(10, 22, 2)
    if kind == 0:
        mask = (y - cy) ** 2 + (x - cx) ** 2 < 60
    elif kind == 1:
        mask = (abs(y - cy) < 3) | (abs(x - cx) < 3)
    else:
        mask = (x + y + round(cx)) % 8 < 4
    colour, ground = generator.uniform(0.5, 1, 3), generator.uniform(0, 0.5, 3)
    shown = np.where(mask[..., None], colour, ground) + generator.normal(0, 0.05, (SIDE, SIDE, 3))
    return (255 * shown.clip(0, 1)).round().astype(np.uint8)


def tiny_pictures(folder: Path, *, each: int = 20) -> str:
    """Write pictures into one folder per class; return their reference ``images:FOLDER``."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for kind, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            Image.fromarray(picture(kind, generator)).save(folder / name / f"{number:03d}.png")
    return f"images:{folder}"


def image_batch(facts: ImageFacts, samples: int = 2, seed: int = 0) -> Batch:
    """Return random images [samples, C, H, W] in 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(samples, facts.channels, facts.height, facts.width, generator=generator)
    return Batch({"images": images}, samples)
