"""Sharpness-aware minimisation: the gradient is taken at a nearby point with higher loss (arXiv 2010.01412)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from xarch.contracts.optimiser import OptimiserWrapper
from xarch.contracts.options import Options

FAINTEST = 1e-12


class SAMOptions(Options):
    """Options of ``sam``."""

    rho: float = Field(0.05, gt=0, description="norm of the perturbation of all parameters")
    adaptive: bool = Field(False, description="scale the perturbation by each weight (arXiv 2102.11600)")


class SAM(OptimiserWrapper):
    """``sam``: climbs by ``rho`` along the gradient before the gradient is computed again."""

    Options = SAMOptions

    @torch.no_grad()
    def perturb(self, parameters: Iterable[nn.Parameter], options: SAMOptions) -> list[tuple[nn.Parameter, Tensor]]:
        """Perturb the parameters and return their old values: adding and subtracting would not restore every bit."""
        moving = [(p, p.grad, p.abs() if options.adaptive else None) for p in parameters if p.grad is not None]
        if not moving:
            return []
        scaled = [grad if scale is None else grad * scale for _, grad, scale in moving]
        norm: Any = torch.nn.utils.get_total_norm(scaled)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        factor = options.rho / (float(norm) + FAINTEST)
        before = []
        for (parameter, _, scale), direction in zip(moving, scaled, strict=True):
            before.append((parameter, parameter.detach().clone()))
            parameter.add_(direction if scale is None else direction * scale, alpha=factor)
        return before

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter], moved: list[tuple[nn.Parameter, Tensor]]) -> None:
        for parameter, before in moved:
            parameter.copy_(before)
