"""The cameras of an edited scene."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xarch_field.facts import ViewFacts


def views_after(views: ViewFacts, before_23: Tensor, after_23: Tensor) -> ViewFacts:
    """Cameras that see the edited scene as those of the field saw it.

    Cameras on a sphere move with the middle of the matter and keep their distance in sizes of it. The poses of a
    training stay where they are: they know the room that is edited.

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
