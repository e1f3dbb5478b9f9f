"""The perceptron in plain PyTorch: positions sorted by how many blocks they run, so that each block reads one slice of
them and weights are used once.

Legend: T positions, D width of the input, F hidden units, O width of the output, N blocks of units.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype, tracing, without_autocast
from xarch.kernels.prefix_mlp.activation import hidden, slopes

Layer = tuple[Tensor, Tensor | None]


@register("prefix_mlp", "torch", priority=10)
def prefix_mlp_plain(
    x_TD: Tensor,
    count_T: Tensor,
    into: Sequence[Layer],
    out: Layer,
    edges: Sequence[int],
    *,
    activation: str | Callable[..., Tensor] | None,
) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.prefix_mlp`; a recorded form computes all units."""
    dtype = island_dtype(x_TD, out[0], *(weight for weight, _ in into))
    x, into, out = x_TD.to(dtype), [_layer(each, dtype) for each in into], _layer(out, dtype)
    if x.is_meta or tracing():
        sizes_N = [last - first for first, last in itertools.pairwise(edges)]
        owner_F = torch.cat([count_T.new_full((size,), n) for n, size in enumerate(sizes_N)])
        made = hidden([F.linear(x, *layer) for layer in into], activation)
        return F.linear(made * (count_T[:, None] > owner_F).to(dtype), *out).to(x_TD.dtype)
    if callable(activation):
        return _forward(x, count_T, into, out, edges, activation).to(x_TD.dtype)
    return _Prefix.apply(x, count_T, *flat(into, out), edges, activation).to(x_TD.dtype)


def flat(into: Sequence[Layer], out: Layer) -> tuple[Tensor | None, ...]:
    """Return weights and biases of the layers in a row; None for a second layer that there is not."""
    second = into[1] if len(into) > 1 else (None, None)
    return (*into[0], *second, *out)


def layers(first: Tensor, first_bias: Tensor | None, second: Tensor | None, second_bias: Tensor | None) -> list[Layer]:
    """Return the layers that read the input from a row of :func:`flat`."""
    return [(first, first_bias), *([] if second is None else [(second, second_bias)])]


class _Prefix(torch.autograd.Function):
    """Keeps nothing but what it is given, and computes hidden values again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: Tensor, *rest: Any) -> Tensor:
        *weights, ctx.edges, ctx.activation = rest
        ctx.save_for_backward(x, count, *weights)
        return _forward(x, count, layers(*weights[:4]), (weights[4], weights[5]), ctx.edges, ctx.activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(dy, *ctx.saved_tensors, edges=ctx.edges, activation=ctx.activation)


def gradients(
    dy_TO: Tensor, x_TD: Tensor, count_T: Tensor, *weights: Tensor | None, edges: Sequence[int], activation: str | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, count, a row of :func:`flat`, edges and activation, in the dtypes of the operands."""
    first, first_bias, second, second_bias, out, out_bias = weights
    assert first is not None
    assert out is not None
    into = layers(first, first_bias, second, second_bias)
    with without_autocast(x_TD.device):
        dx, dinto, dout = backward(dy_TO, x_TD, count_T, into, (out, out_bias), edges, activation)
    found: list[Tensor | None] = [dx.to(x_TD.dtype), None]
    for (weight, bias), made in zip([*into, (out, out_bias)], [*dinto, dout], strict=True):
        found += [made[0].to(weight.dtype), None if bias is None else made[1].to(bias.dtype)]
    if second is None:
        found[4:4] = [None, None]
    return (*found, None, None)


def _forward(
    x_TD: Tensor,
    count_T: Tensor,
    into: Sequence[Layer],
    out: Layer,
    edges: Sequence[int],
    activation: str | Callable[..., Tensor] | None,
) -> Tensor:
    if len(x_TD) and bool((count_T == count_T[0]).all()):
        # One position, or all alike.
        units = slice(0, edges[min(max(int(count_T[0]), 0), len(edges) - 1)])
        made = hidden([F.linear(x_TD, *_part(layer, units)) for layer in into], activation)
        return F.linear(made, out[0][:, units], out[1])
    order_T, ends = grouped(count_T, len(edges) - 1)
    sorted_TD = x_TD.index_select(0, order_T)
    made_TO = sorted_TD.new_zeros(len(x_TD), len(out[0]))
    if out[1] is not None:
        made_TO = made_TO + out[1]
    for end, first, last in zip(ends, edges[:-1], edges[1:], strict=True):
        if end:
            units = slice(first, last)
            made = hidden([F.linear(sorted_TD[:end], *_part(layer, units)) for layer in into], activation)
            made_TO[:end] += F.linear(made, out[0][:, units])
    return torch.empty_like(made_TO).index_copy_(0, order_T, made_TO)


def grouped(count_T: Tensor, blocks: int) -> tuple[Tensor, list[int]]:
    """Return positions, those with most blocks first, and how many of them run each block."""
    sorted_T, order_T = count_T.sort(descending=True, stable=True)
    reached_TN = sorted_T[:, None] > torch.arange(blocks, device=count_T.device)
    return order_T, reached_TN.sum(0).tolist()


def backward(
    dy_TO: Tensor,
    x_TD: Tensor,
    count_T: Tensor,
    into: Sequence[Layer],
    out: Layer,
    edges: Sequence[int],
    activation: str | None,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Return the gradients of x, of weights and biases of the layers that read it, and of those of ``out``, in float32
    or wider."""
    dtype = island_dtype(x_TD, out[0], *(weight for weight, _ in into))
    # Products of other strides may differ in their last bits.
    into, out = [_layer(each, dtype) for each in into], _layer(out, dtype)
    order_T, ends = grouped(count_T, len(edges) - 1)
    sorted_TD, upstream_TO = (t.to(dtype).contiguous().index_select(0, order_T) for t in (x_TD, dy_TO))
    dx_TD = torch.zeros_like(sorted_TD)
    dinto = [(torch.zeros_like(w), w.new_zeros(len(w))) for w, _ in into]
    dweight_OF, dbias_O = torch.zeros_like(out[0]), upstream_TO.sum(0)
    for end, first, last in zip(ends, edges[:-1], edges[1:], strict=True):
        if not end:
            break
        units = slice(first, last)
        read = [F.linear(sorted_TD[:end], *_part(layer, units)) for layer in into]
        dweight_OF[:, units] = upstream_TO[:end].t() @ hidden(read, activation)
        made = slopes(upstream_TO[:end] @ out[0][:, units], read, activation)
        for (weight, _), (dweight, dbias), slope in zip(into, dinto, made, strict=True):
            dweight[units], dbias[units] = slope.t() @ sorted_TD[:end], slope.sum(0)
            dx_TD[:end] += slope @ weight[units]
    return torch.empty_like(dx_TD).index_copy_(0, order_T, dx_TD), dinto, (dweight_OF, dbias_O)


def _layer(layer: Layer, dtype: torch.dtype) -> Layer:
    weight, bias = layer
    return weight.to(dtype).contiguous(), None if bias is None else bias.to(dtype)


def _part(layer: Layer, units: slice) -> Layer:
    weight, bias = layer
    return weight[units], None if bias is None else bias[units]
