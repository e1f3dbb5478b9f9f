"""Which parameters a stage trains, and the optimiser over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xarch.config.schema import Group, Optimiser
from xarch.contracts.model import Student
from xarch.engine.distributed import Distributed
from xarch.errors import UsageError
from xarch.optim import Muon, layer_matrices

OBJECTIVES = "objectives"
"""Pseudo-site of parameters that belong to objectives (projectors)."""
_CHANGED = "undo what was changed in the run's plan.json, or start a new run in another folder"


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
    """The trained parameters of a stage with their optimisers; everything else is frozen.

    Attributes:
        named: parameter name -> parameter; those of objectives are called ``objectives.…``.
        optimisers: AdamW, or Muon for matrices of layers and AdamW for the rest; none where nothing is trained.
    """

    def __init__(
        self, student: Student, chosen: Mapping[str, Group], objectives: nn.Module, optimiser: Optimiser, *, fused: bool
    ) -> None:
        self.named: dict[str, nn.Parameter] = {}
        no_decay = set(student.no_decay())
        matrices = layer_matrices(student.module) if optimiser.algorithm == "muon" else set()
        buckets: dict[bool, dict[tuple[float, float], list[nn.Parameter]]] = {False: {}, True: {}}
        for name, parameter in student.module.named_parameters():
            group = chosen.get(name)
            parameter.requires_grad_(group is not None)
            parameter.grad = None
            if group is None:
                continue
            self.named[name] = parameter
            decay = optimiser.weight_decay if group.weight_decay is None else group.weight_decay
            decay = 0.0 if name in no_decay and group.weight_decay is None else decay
            buckets[name in matrices].setdefault((group.lr, decay), []).append(parameter)
        for name, parameter in objectives.named_parameters():
            self.named[f"{OBJECTIVES}.{name}"] = parameter
            decay = optimiser.weight_decay if parameter.ndim > 1 else 0.0
            buckets[False].setdefault((1.0, decay), []).append(parameter)
        self.optimisers: list[torch.optim.Optimizer] = []
        if buckets[False]:
            rest, betas, eps = _groups(buckets[False]), optimiser.betas, optimiser.eps
            self.optimisers.append(torch.optim.AdamW(rest, lr=optimiser.lr, betas=betas, eps=eps, fused=fused or None))
        if buckets[True]:
            self.optimisers.append(Muon(_groups(buckets[True]), lr=optimiser.lr, momentum=optimiser.momentum))

    def step(self, lr: float) -> None:
        """One update at learning rate ``lr`` (times each group's multiple)."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * group["multiple"]
            optimiser.step()

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

    def tensors(self, ranks: Distributed) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(trained values, optimiser moments), whole, for a checkpoint."""
        values = {name: ranks.whole(p.detach()) for name, p in self.named.items()}
        moments: dict[str, Tensor] = {}
        for optimiser in self.optimisers:
            for name, parameter in self.named.items():
                for key, tensor in optimiser.state.get(parameter, {}).items():
                    moments[f"{key}|{name}"] = (
                        ranks.whole(tensor) if isinstance(tensor, Tensor) else torch.tensor(tensor)
                    )
        return values, moments

    def load(self, values: Mapping[str, Tensor], moments: Mapping[str, Tensor], ranks: Distributed) -> None:
        """Inverse of :meth:`tensors`.

        Raises:
            UsageError: they are those of other parameters or of another algorithm.
        """
        self._check(values, moments)
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(ranks.like(values[name], parameter))
        owners: dict[int, torch.optim.Optimizer] = {}
        for optimiser in self.optimisers:
            optimiser.state.clear()
            owners |= {id(p): optimiser for group in optimiser.param_groups for p in group["params"]}
        for key, tensor in moments.items():
            part, name = key.split("|", 1)
            parameter = self.named[name]
            optimiser = owners[id(parameter)]
            value: Any = tensor.clone() if tensor.ndim == 0 else ranks.like(tensor.clone(), parameter)
            on_device = tensor.ndim == 0 and optimiser.param_groups[0].get("fused")
            optimiser.state[parameter][part] = value.to(parameter.device) if on_device else value

    def _check(self, values: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """A checkpoint fits the plan that made it; one changed by hand since must not go on with half of it."""
        missing = sorted(self.named.keys() - values.keys())
        if missing:
            raise UsageError(f"the checkpoint has no parameter {missing[0]}, which the plan trains", _CHANGED)
        muon = {id(p) for o in self.optimisers if isinstance(o, Muon) for g in o.param_groups for p in g["params"]}
        for key in moments:
            part, name = key.split("|", 1)
            if name not in self.named:
                raise UsageError(f"the checkpoint trained {name}, the plan does not", _CHANGED)
            if (part == "momentum") != (id(self.named[name]) in muon):
                was, now = ("muon", "adamw") if part == "momentum" else ("adamw", "muon")
                raise UsageError(f"the checkpoint trained {name} by {was}, the plan does by {now}", _CHANGED)


def _groups(buckets: Mapping[tuple[float, float], list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [{"params": ps, "multiple": lr, "weight_decay": decay} for (lr, decay), ps in buckets.items()]


def _site_of(name: str, sites: list[str]) -> str:
    if name.startswith(OBJECTIVES + "."):
        return OBJECTIVES
    return next((site for site in sites if name.startswith(site + ".")), "")
