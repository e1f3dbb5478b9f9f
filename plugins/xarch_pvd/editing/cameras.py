"""The cameras of an edited scene."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xarch_field.facts import ViewFacts


def views_after(views: ViewFacts, before_23: Tensor, after_23: Tensor) -> ViewFacts:
    """Return cameras that see the edited scene as the field's cameras saw it before.

    Cameras on a sphere follow the centre of the matter; their distance scales with its size. Training poses are
    unchanged: they lie inside the space being edited.

    Args:
        before_23, after_23: corners of the matter before and after the edits.
    """
    if views.poses:
        return views
    scale = float((after_23[1] - after_23[0]).norm() / (before_23[1] - before_23[0]).norm())
    away = torch.tensor(views.target) - before_23.mean(dim=0)
    x, y, z = (after_23.mean(dim=0) + scale * away).tolist()
    near, far = views.radius
    return replace(views, radius=(near * scale, far * scale), target=(x, y, z))
