"""A small ViT as teacher, and a student of it with random gates."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from xarch import Teacher, save_weights
from xarch.testing.models import load_teacher
from xarch_acm.options import AcmOptions
from xarch_acm.student import AcmStudent
from xarch_acm.target import AcmTarget

CLASSES = 3


def tiny_vit(folder: Path, seed: int = 0) -> str:
    """Write a random ViT of two blocks for images of 32 pixels in three classes; return its reference."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = timm.create_model("test_vit", num_classes=CLASSES, img_size=32, patch_size=8, depth=2)
    file = folder / "teacher.safetensors"
    save_weights(net.state_dict(), file)
    return f"timm:test_vit?checkpoint={file}&size=32&patch_size=8&depth=2"


def with_random_gates(folder: Path, **options) -> AcmStudent:
    """Return a student of :func:`tiny_vit`, in eval mode, whose gates choose at random."""
    teacher, target = load_teacher(tiny_vit(folder)), AcmTarget()
    return chosen_by_chance(target.build(teacher.facts, AcmOptions(**options), {}, device=torch.device("cpu")), teacher)


def chosen_by_chance(made: AcmStudent, teacher: Teacher) -> AcmStudent:
    """Return a student with its teacher's weights, in eval mode, whose gates choose at random."""
    AcmTarget().initialise(made, teacher)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in made.adaptive.values():
            nn.init.normal_(module.gate.out.weight, std=3.0 if module.gate.estimates else 1.0)
            nn.init.zeros_(module.gate.out.bias)
    made.module.eval().requires_grad_(False)
    return made
