"""Depthwise convolutions of other packages, tokens last [B, C, L]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.contender import Inputs


def plain(i: Inputs) -> Tensor:
    """``torch.nn.functional.conv1d`` on padded inputs, what most models in plain PyTorch do."""
    taps = i["weight"].shape[1]
    y = F.conv1d(i["x"], i["weight"][:, None], i["bias"], padding=taps - 1, groups=i["x"].shape[1])
    return y[..., : i["x"].shape[2]]


def cuda(i: Inputs) -> Tensor:
    """The kernel of the package causal-conv1d."""
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(i["x"], i["weight"], i["bias"])
