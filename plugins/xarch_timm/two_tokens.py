"""A plain vision transformer with a distillation token beside its class token, and a classifier of its own for it."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

__all__ = ["TwoTokens", "checkpoint_filter_fn"]
"""Weights of a model are read by the filter in the module of its class."""


class TwoTokens(VisionTransformerDistilled):
    """timm's DeiT from the settings of any of its plain transformers, also of those whose position embedding leaves the
    tokens out (DeiT III).

    Raises:
        ValueError: the settings are of a transformer without a class token, or with registers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("reg_tokens"):
            raise ValueError("it has registers, which a distilled transformer of timm does not read")
        if kwargs.get("class_token") is False or kwargs.get("global_pool", "token") != "token":
            raise ValueError("it answers by its grid, not by a class token")
        super().__init__(*args, **kwargs)
        if self.no_embed_class and self.pos_embed is not None:
            grid = self.pos_embed[:, self.num_prefix_tokens :].detach()
            self.pos_embed = nn.Parameter(torch.empty_like(grid).copy_(grid))
