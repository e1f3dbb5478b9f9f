"""A perceptron with one hidden layer of which every position runs the first few blocks of hidden units.

Legend: T positions, D width of the input, F hidden units, O width of the output, N blocks of units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.dispatch import select
from xarch.kernels.precision import without_autocast
from xarch.kernels.prefix_mlp import cpp, naive, plain, triton
from xarch.kernels.prefix_mlp.activation import ACTIVATIONS

__all__ = ["ACTIVATIONS", "cpp", "naive", "plain", "prefix_mlp", "triton"]


def prefix_mlp(
    x_TD: Tensor,
    count_T: Tensor,
    into: Sequence[tuple[Tensor, Tensor | None]],
    out: tuple[Tensor, Tensor | None],
    edges: Sequence[int],
    *,
    activation: str | Callable[..., Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """y = out(h) with the hidden values h = activation(into(x)), or activation(into_1(x)) ∘ into_2(x), where a position
    has no others than those of its first ``count`` blocks.

    Args:
        x_TD: inputs.
        count_T: blocks that run at each position, integers. At 0 or below the output is the bias; above N counts as N.
        into: weight [F, D] and bias [F] of the layer that reads the input, or of two.
        out: weight [O, F] and bias [O] of the layer that reads the hidden values.
        edges: first unit of every block, and F: N + 1 numbers.
        activation: one of :data:`ACTIVATIONS`; None for none. A function that is called with what all layers of
            ``into`` give works with the backends naive and torch.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        [T, O] in the dtype of ``x_TD``.

    Raises:
        UsageError: shapes or edges do not fit together, the activation is unknown, or the backend cannot run the call.
    """
    _check(x_TD, count_T, into, out, edges, activation)
    features = {"own_activation"} if callable(activation) else set()
    chosen = select("prefix_mlp", x_TD.device, x_TD.dtype, features=features, backend=backend)
    with without_autocast(x_TD.device):
        y_TO: Tensor = chosen.run(x_TD, count_T, tuple(into), out, tuple(edges), activation=activation)
    return y_TO


def _check(
    x: Tensor,
    count: Tensor,
    into: Sequence[tuple[Tensor, Tensor | None]],
    out: tuple[Tensor, Tensor | None],
    edges: Sequence[int],
    activation: object,
) -> None:
    if x.dim() != 2 or len(into) not in (1, 2) or out[0].dim() != 2:
        raise UsageError(
            "prefix_mlp: want x [T, D], one or two layers that read it and a weight [O, F], got "
            f"{list(x.shape)}, {len(into)} layers and {list(out[0].shape)}"
        )
    units = out[0].shape[1]
    if len(edges) < 2 or list(edges) != sorted(edges) or edges[0] != 0 or edges[-1] != units:
        raise UsageError(f"prefix_mlp: edges of blocks must rise from 0 to {units} units, got {list(edges)}")
    wanted: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "count": (count, (len(x),)),
        "bias of out": (out[1], (len(out[0]),)),
    }
    for weight, bias in into:
        wanted |= {"weight": (weight, (units, x.shape[1])), "bias": (bias, (units,))}
        for name, (value, shape) in wanted.items():
            if value is not None and tuple(value.shape) != shape:
                raise UsageError(f"prefix_mlp: {name} has shape {list(value.shape)}, want {list(shape)}")
    if not callable(activation) and activation not in ACTIVATIONS:
        names = ", ".join(name for name in ACTIVATIONS if name is not None)
        raise UsageError(f"prefix_mlp: no activation is called {activation!r}", f"one of {names}, None, or a function")
