"""Modules of a model that a conversion may replace, whatever the model's architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Replaceable:
    """A module that maps vectors to vectors, each position on its own: out(activation(into_1(x), ...)), or one linear
    map. Its inputs have the samples in dimension 0 and the vector in the last.

    Attributes:
        path: of the module in the model's ``module``, e.g. ``blocks.3.mlp``.
        kind: its role, for people to choose by: "mlp", "q", "k", "v", "qkv" (all three in one) or "o".
        residual: whether its output is added to what it reads, so that a model without it is still sensible.
        into: names within the module of the linear layers that read its input; none for a module that is itself linear.
        activation: called with their outputs, returns the hidden values.
        out: name within the module of the linear layer that reads the hidden values.
        positions: how many vectors of a sample it reads, if always as many: an image of fixed size. 0: it varies.
        function: name in ``xarch.kernels.ACTIVATIONS`` if activation is that function of what the first layer gives,
            times what the second gives if there are two, so that kernels can compute it; "" if it is another.
    """

    path: str
    kind: str
    residual: bool = False
    into: tuple[str, ...] = ()
    activation: Callable[..., Tensor] | None = None
    out: str = ""
    function: str = ""
    positions: int = 0
