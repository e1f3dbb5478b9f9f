"""Where a model computes, for models that compute more at some positions than at others.

Legend: B images, L positions, H and W height and width of their grid.
"""

from __future__ import annotations

from torch import Tensor

from xarch_image.facts import ImageFacts

EFFORT = "effort"
"""Tap of such a model: the share of what it could compute [B, L]."""


def effort_map(effort_BL: Tensor, facts: ImageFacts) -> Tensor | None:
    """Return the share at every place of the grid of tokens [B, H, W], without the tokens before it; None if the
    positions are of no known grid."""
    if not facts.features:
        return None
    height, width = facts.features[0].height, facts.features[0].width
    own_BL = effort_BL[:, facts.prefix_tokens :]
    return own_BL.unflatten(1, (height, width)).cpu() if own_BL.shape[1] == height * width else None
