"""Classifiers that compare directions.

Legend: B images, D width, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch import UsageError
from xarch_timm.anatomy import Net, classifiers


class CosineClassifier(nn.Module):
    """[B, D] -> [B, K]: ``scale`` times the cosine between features and the weights of every class."""

    def __init__(self, width: int, classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.normal_(self.weight)
        self.scale = scale

    def forward(self, value_BD: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(value_BD, dim=-1), F.normalize(self.weight, dim=-1))


def with_cosine_classifiers(net: Net, scale: object, name: str) -> Net:
    """Replace the linear classifiers of a model by ones that compare directions, with new weights.

    Raises:
        UsageError: the scale is no positive number, or a classifier is not linear.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise UsageError(f"timm:{name}: the scale of its cosine classifier is {scale!r}", "a number, e.g. cosine=30")
    own = {id(module): path for path, module in net.named_modules()}
    for old in classifiers(net):
        if not isinstance(old, nn.Linear):
            raise UsageError(f"timm:{name}: its classifier is a {type(old).__name__}, not linear", "leave out cosine")
        parent, _, leaf = own[id(old)].rpartition(".")
        new = CosineClassifier(old.in_features, old.out_features, float(scale)).to(old.weight)
        setattr(net.get_submodule(parent), leaf, new)
    return net
