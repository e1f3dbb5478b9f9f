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
    tolerance: float,
) -> None:
    """Compare outputs and gradients by all inputs, row by row (:func:`row_error`).

    Args:
        fast, truth: take the inputs and return tensors; ``truth`` receives them in float64.
        inputs: floating-point leaf tensors.
        tolerance: about ten times the error of right float32 results, so that none of a wrong formula passes.

    Raises:
        SelfCheckError: a result is not finite or a row is off by more than ``tolerance``.
    """
    found, wanted = _results(fast, inputs, torch.float32), _results(truth, inputs, torch.float64)
    for name, got, want in zip(_names(found, inputs), found, wanted, strict=True):
        error = row_error(got, want)
        if not error <= tolerance:
            raise SelfCheckError(f"self-check failed: {name} is off by {error:.1e}, want {tolerance:.0e}")


def row_error(found: Tensor, truth: Tensor) -> float:
    """The largest error of a row along the last dimension: a token, or a head of one; NaN if any is.

    Norms of a whole tensor hide one wrong token among thousands. An error is relative to the row, or to the mean row
    where that is larger, since the digits of a small row are lost in what cancelled.
    """
    wanted = truth.double().reshape(-1, truth.shape[-1] if truth.dim() else 1)
    if wanted.numel() == 0:
        return 0.0
    norms = wanted.norm(dim=1)
    scale = torch.maximum(norms, norms.square().mean().sqrt()).clamp_min(1e-30)
    return float(((found.double().reshape(wanted.shape) - wanted).norm(dim=1) / scale).max())


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
