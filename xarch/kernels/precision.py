"""The parts of a kernel that stay in float32 whatever the inputs are, and the smallest decay that counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LOG_FLOOR = -60.0
"""Exponents below this are raised to it: e^-60 = 9e-27 vanishes beside 1 even in float64.

Without the floor products of decays reach the subnormal numbers, where exp and matmul run 50 to 200 times slower on
x86 CPUs; a mask of -1e4 before exp has the same cost, so masks multiply after exp.
"""


def island_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Dtype of log-decay, prefix sums, exponentials and states: float64 if any input is, else float32."""
    doubles = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if doubles else torch.float32


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Keep autocast from lowering the float32 islands inside the block."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b [..., I, K] of [..., I, J] and [..., J, K] whose gradients autocast does not lower either.

    The derivative of PyTorch's own product runs in the block that calls ``backward``, autocast included.
    """
    return a @ b if tracing() else _Product.apply(a, b)


class _Product(torch.autograd.Function):
    """Differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with without_autocast(a.device):
            return a @ b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return _Product.apply(grad, b.mT), _Product.apply(a.mT, grad)


def tracing() -> bool:
    """Whether an exporter is recording the operations, so that autograd functions must stay out of the way."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
