"""Activations that all backends know, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: Mapping[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
"""Name -> function. In the order in which the compiled backends number them."""

_SLOPES: Mapping[str | None, Callable[[Tensor, Tensor], Tensor]] = {
    None: lambda upstream, x: upstream,
    "relu": lambda upstream, x: torch.ops.aten.threshold_backward(upstream, x, 0),
    "gelu": lambda upstream, x: torch.ops.aten.gelu_backward(upstream, x),
    "gelu_tanh": lambda upstream, x: torch.ops.aten.gelu_backward(upstream, x, approximate="tanh"),
    "silu": lambda upstream, x: torch.ops.aten.silu_backward(upstream, x),
}


def number(name: str | None) -> int:
    """Return what compiled backends call an activation."""
    return list(ACTIVATIONS).index(name)


def hidden(read: Sequence[Tensor], activation: str | Callable[..., Tensor] | None) -> Tensor:
    """Return the hidden values from what the layers that read the input give."""
    if activation is not None and not isinstance(activation, str):
        return activation(*read)
    made = ACTIVATIONS[activation](read[0])
    return made if len(read) == 1 else made * read[1]


def slopes(upstream: Tensor, read: Sequence[Tensor], activation: str | None) -> list[Tensor]:
    """Return the gradients of what the layers give from that of the hidden values."""
    if len(read) == 1:
        return [_SLOPES[activation](upstream, read[0])]
    return [_SLOPES[activation](upstream * read[1], read[0]), upstream * ACTIVATIONS[activation](read[0])]
