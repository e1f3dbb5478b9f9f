"""The operators of the compiled backends: a forward pass of their own, one backward pass for all.

Legend: T positions, D width of the input, F hidden units, O width of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.prefix_mlp.plain import Layer, gradients, layers

_OPERANDS = (
    "Tensor x, Tensor count, Tensor first, Tensor? first_bias, Tensor? second, Tensor? second_bias, Tensor out, "
    "Tensor? out_bias, int[] edges, str? activation"
)

Forward = Callable[[Tensor, Tensor, Sequence[Layer], Layer, Sequence[int], str | None], Tensor]


@torch.library.custom_op("xarch::prefix_mlp_backward", mutates_args=(), schema=f"(Tensor dy, {_OPERANDS}) -> Tensor[]")
def _backward(dy: Tensor, *call: Any) -> list[Tensor]:
    *operands, edges, activation = call
    found = gradients(dy, *operands, edges=edges, activation=activation)
    return [t for t in found if t is not None]


@_backward.register_fake
def _(dy: Tensor, *call: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in _differentiable(call) if t is not None]


def _differentiable(call: Sequence[Any]) -> list[Tensor | None]:
    x, _, *weights, _, _ = call
    return [x, *weights]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.edges, ctx.activation = inputs
    ctx.save_for_backward(*operands)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    call = (*ctx.saved_tensors, ctx.edges, ctx.activation)
    found = iter(torch.ops.xarch.prefix_mlp_backward(dy, *call))
    dx, *dweights = (None if t is None else next(found) for t in _differentiable(call))
    return (dx, None, *dweights, None, None)


def operator(name: str, run: Forward) -> Callable[..., Tensor]:
    """Return the differentiable operator ``xarch::NAME`` for a forward pass."""

    @torch.library.custom_op(f"xarch::{name}", mutates_args=(), schema=f"({_OPERANDS}) -> Tensor")
    def forward(x: Tensor, count: Tensor, *rest: Any) -> Tensor:
        *weights, edges, activation = rest
        return run(x, count, layers(*weights[:4]), (weights[4], weights[5]), edges, activation)

    @forward.register_fake
    def _(x: Tensor, count: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(len(x), len(rest[4]))

    forward.register_autograd(_differentiate, setup_context=_keep)
    return forward
