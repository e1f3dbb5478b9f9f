"""A step for every token, one after another; exporters record it once, or once per token.

Legend: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from xarch.kernels.graph_forms import graph_form
from xarch.kernels.precision import tracing

Step = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""(one token of every sequence [B, ...], state, constants if there are any) -> (what it gives [B, ...], the state after
it in the same shapes and dtypes)."""


def over_tokens(
    step: Step, sequences: Sequence[Tensor], state: tuple[Tensor, ...], constants: tuple[Tensor, ...] = ()
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what ``step`` gives for all tokens [B, L, ...], and the state after the last one.

    In the exported form "scan" (see :data:`xarch.kernels.graph_forms.FORMS`) the step is recorded once, as the body of
    an ONNX Scan; it may create tensors by ``torch.tensor`` only, and depends on nothing else.

    Args:
        step: one token.
        sequences: [B, L, ...] each, L at least 1.
        state: before the first token.
        constants: further tensors that every step is called with.
    """
    if tracing() and graph_form("tokens") == "scan":
        return _recorded(step, sequences, state, constants)
    rows: list[Tensor] = []
    for t in range(sequences[0].shape[1]):
        row, state = step(*(sequence[:, t] for sequence in sequences), state, *constants)
        rows.append(row)
    return torch.stack(rows, 1), state


def _recorded(
    step: Step, sequences: Sequence[Tensor], state: tuple[Tensor, ...], constants: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    from torch._higher_order_ops.scan import scan_op

    tokens = [sequence.transpose(0, 1) for sequence in sequences]
    held, taken = len(state), len(state) + len(tokens)
    given = taken + len(constants)

    def body(values: Sequence[Tensor]) -> list[Tensor]:
        row, after = step(*values[held:taken], tuple(values[:held]), *values[taken:])
        return [*_laid_out(after), row]

    # The exporter loses constants that are created inside of a body, so they come in from outside.
    with _Constants() as created:
        body([*state, *(sequence[0] for sequence in tokens), *constants])

    def combine(*values: Tensor) -> list[Tensor]:
        with _Constants(values[given:]):
            return body(values[:given])

    *after, rows = scan_op(combine, _laid_out(state), tokens, (*constants, *created.made))
    return rows.transpose(0, 1), tuple(after)


def _laid_out(state: Iterable[Tensor]) -> list[Tensor]:
    """Return copies in one memory layout: the state must come back in that which it went in with, as no view of it."""
    return [t.clone(memory_format=torch.contiguous_format) for t in state]


class _Constants(TorchFunctionMode):
    """Keeps the tensors that ``torch.tensor`` creates, or returns given ones in the same order instead."""

    def __init__(self, given: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self.given = None if given is None else iter(given)
        self.made: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.tensor and self.given is not None:
            return next(self.given)
        found = func(*args, **(kwargs or {}))
        if func is torch.tensor:
            self.made.append(found)
        return found
