"""Hard sigmoid and hard swish as a clipped line, for profiles without HardSigmoid or HardSwish."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from xarch.export.lowerings.lowering import Lowering


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Return clip(x / 6 + 1 / 2, 0, 1)."""
    return (input / 6 + 0.5).clamp(0, 1)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """Return x times its hard sigmoid."""
    return input * hardsigmoid(input)


LOWERING = Lowering(
    "hard-activations",
    "F.hardswish and F.hardsigmoid as Clip and Mul",
    replaces=("HardSigmoid", "HardSwish"),
    functions={F.hardsigmoid: hardsigmoid, F.hardswish: hardswish},
)
