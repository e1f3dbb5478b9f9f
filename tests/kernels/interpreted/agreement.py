"""One comparison for all operations: values and gradients of a backend against naive in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def relative_errors(
    call: Callable[..., Any],
    operands: Sequence[Tensor | None],
    backend: str = "triton",
    dtypes: Sequence[torch.dtype] | torch.dtype = torch.float32,
) -> list[float]:
    """Relative norm of the error of each output and each gradient.

    ``call(backend, *operands)`` returns a tensor or several. The truth takes the same operands, after rounding.
    """
    if isinstance(dtypes, torch.dtype):
        dtypes = [dtypes] * len(operands)
    rounded = [None if t is None else t.detach().to(d) for t, d in zip(operands, dtypes, strict=True)]
    results = []
    for name, exact in ((backend, False), ("naive", True)):
        leaves = [None if t is None else (t.double() if exact else t).requires_grad_() for t in rounded]
        outputs = call(name, *leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        differentiable = [t for t in outputs if t.requires_grad]
        generator = torch.Generator().manual_seed(7)
        upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in differentiable]
        grads = torch.autograd.grad(
            differentiable, [t for t in leaves if t is not None], upstream, allow_unused=True, materialize_grads=True
        )
        results.append([*outputs, *grads])
    for got, want in zip(*results, strict=True):
        assert got.shape == want.shape
        assert torch.isfinite(got).all()
    return [
        float((got.detach().double() - want.detach()).norm() / want.detach().norm().clamp_min(1e-6))
        for got, want in zip(*results, strict=True)
    ]
