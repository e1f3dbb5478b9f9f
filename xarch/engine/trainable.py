"""Which parameters a stage trains, and the optimiser over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xarch.config.schema import Group, Optimiser
from xarch.contracts.model import Student
from xarch.engine.distributed import Ranks
from xarch.errors import UsageError

OBJECTIVES = "objectives"
"""Pseudo-site of parameters that belong to objectives (projectors)."""


def select(student: Student, trains: Mapping[str, Group]) -> dict[str, Group]:
    """Parameter name -> the group it trains in; a parameter named by several groups takes the last one.

    Raises:
        UsageError: a group does not exist.
    """
    groups = student.param_groups()
    chosen: dict[str, Group] = {}
    for name, group in trains.items():
        if name not in groups:
            raise UsageError(f"the student has no parameter group {name!r}", f"groups: {', '.join(sorted(groups))}")
        if group.lr > 0:
            chosen |= dict.fromkeys(groups[name], group)
    return chosen


class Trainable:
    """The trained parameters of a stage with their AdamW optimiser; everything else is frozen.

    Attributes:
        named: parameter name -> parameter; those of objectives are called ``objectives.…``.
    """

    def __init__(
        self, student: Student, chosen: Mapping[str, Group], objectives: nn.Module, optimiser: Optimiser, *, fused: bool
    ) -> None:
        self.optimiser = optimiser
        self.named: dict[str, nn.Parameter] = {}
        no_decay = set(student.no_decay())
        buckets: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in student.module.named_parameters():
            group = chosen.get(name)
            parameter.requires_grad_(group is not None)
            parameter.grad = None
            if group is None:
                continue
            self.named[name] = parameter
            decay = optimiser.weight_decay if group.weight_decay is None else group.weight_decay
            decay = 0.0 if name in no_decay and group.weight_decay is None else decay
            buckets.setdefault((group.lr, decay), []).append(parameter)
        for name, parameter in objectives.named_parameters():
            self.named[f"{OBJECTIVES}.{name}"] = parameter
            buckets.setdefault((1.0, optimiser.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
        self.multiples = [lr for lr, _ in buckets]
        groups = [{"params": ps, "weight_decay": decay} for (_, decay), ps in buckets.items()]
        self.adam = (
            torch.optim.AdamW(groups, lr=optimiser.lr, betas=optimiser.betas, eps=optimiser.eps, fused=fused or None)
            if groups
            else None
        )

    def step(self, lr: float) -> None:
        """One update at learning rate ``lr`` (times each group's multiple)."""
        if self.adam is None:
            return
        for group, multiple in zip(self.adam.param_groups, self.multiples, strict=True):
            group["lr"] = lr * multiple
        self.adam.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.named.values():
            parameter.grad = None

    def clip(self, sites: list[str], largest: float) -> float:
        """Clip gradients, each site on its own in a local stage because sites are independent problems.

        Returns:
            The gradient norm over everything, before clipping.
        """
        parts: dict[str, list[Tensor]] = {}
        for name, parameter in self.named.items():
            if parameter.grad is not None:
                parts.setdefault(_site_of(name, sites), []).append(parameter.grad)
        total = 0.0
        for grads in parts.values():
            norm = torch.nn.utils.get_total_norm(grads)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            if largest > 0:
                factor = (largest / (norm + 1e-6)).clamp(max=1.0)
                for grad in grads:
                    grad.mul_(factor.to(grad.device))
            total += float(norm) ** 2
        return total**0.5

    def tensors(self, ranks: Ranks) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(trained values, optimiser moments), whole, for a checkpoint."""
        values = {name: ranks.whole(p.detach()) for name, p in self.named.items()}
        moments: dict[str, Tensor] = {}
        state = {} if self.adam is None else self.adam.state
        for name, parameter in self.named.items():
            for key, tensor in state.get(parameter, {}).items():
                moments[f"{key}|{name}"] = ranks.whole(tensor) if isinstance(tensor, Tensor) else torch.tensor(tensor)
        return values, moments

    def load(self, values: Mapping[str, Tensor], moments: Mapping[str, Tensor], ranks: Ranks) -> None:
        """Inverse of :meth:`tensors`."""
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(ranks.like(values[name], parameter))
        if self.adam is None:
            return
        self.adam.state.clear()
        for key, tensor in moments.items():
            part, name = key.split("|", 1)
            parameter = self.named[name]
            value: Any = tensor.clone() if tensor.ndim == 0 else ranks.like(tensor.clone(), parameter)
            self.adam.state[parameter][part] = value.to(parameter.device) if tensor.ndim == 0 and self._fused else value

    @property
    def _fused(self) -> bool:
        return self.adam is not None and bool(self.adam.param_groups[0].get("fused"))


def _site_of(name: str, sites: list[str]) -> str:
    if name.startswith(OBJECTIVES + "."):
        return OBJECTIVES
    return next((site for site in sites if name.startswith(site + ".")), "")
