"""The comparison with naive that a compiled backend must pass before its first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xarch.errors import XarchError


class SelfCheckError(XarchError):
    """A compiled backend does not agree with naive on this machine."""


def agree(
    fast: Callable[..., Sequence[Tensor]],
    truth: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    *,
    tolerance: float = 1e-3,
) -> None:
    """Compare outputs and gradients by all inputs, as relative norms of the difference.

    Args:
        fast, truth: take the inputs and return tensors; ``truth`` receives them in float64.
        inputs: floating-point leaf tensors.

    Raises:
        SelfCheckError: a result is not finite or off by more than ``tolerance``.
    """
    found, wanted = _results(fast, inputs, torch.float32), _results(truth, inputs, torch.float64)
    for name, got, want in zip(_names(found, inputs), found, wanted, strict=True):
        distance = (got.double() - want).norm() / want.norm().clamp_min(1e-6)
        if not distance <= tolerance:
            raise SelfCheckError(f"self-check failed: {name} is off by {float(distance):.1e}, want {tolerance:.0e}")


def waves(*shape: int, phase: float, device: str = "cpu") -> Tensor:
    """Values in [-1, 1] that need no random numbers, float32."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + phase).float().view(shape).to(device)


def _results(run: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
    outputs = list(run(*leaves))
    cotangents = [waves(*o.shape, phase=i + 0.5, device=str(o.device)).to(o.dtype) for i, o in enumerate(outputs)]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, cotangents)]


def _names(results: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[str]:
    outputs = len(results) - len(inputs)
    return [*(f"output {i}" for i in range(outputs)), *(f"the gradient of input {i}" for i in range(len(inputs)))]
