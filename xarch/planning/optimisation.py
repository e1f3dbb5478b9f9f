"""Planning of a stage's optimisation: optimiser, wrappers, schedule and their options."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from xarch.config.schema import Optimiser
from xarch.config.validation import validated
from xarch.contracts.optimiser import OptimiserKind, OptimiserWrapper, Schedule
from xarch.registry.registry import Registry


@dataclass(frozen=True)
class PlannedOptimiser:
    """Checked optimiser of a stage.

    Attributes:
        kind, rest: the algorithm, and the one for parameters that it excludes.
        gradients: gradient computations per step: one, plus one for every wrapper.
    """

    kind: OptimiserKind
    rest: OptimiserKind
    gradients: int

    def moments(self, module: nn.Module, trained: Collection[str]) -> int:
        """Return how many numbers both keep for the trained parameters of a module."""
        taken = self.kind.takes(module)
        sizes = {name: p.numel() for name, p in module.named_parameters()}
        own = sum(sizes[name] for name in trained if taken is None or name in taken)
        return own * self.kind.moments() + (sum(sizes[n] for n in trained) - own) * self.rest.moments()

    def work(self, module: nn.Module, trained: Collection[str]) -> float:
        """Return the multiply-adds of one step besides forward and backward."""
        taken = self.kind.takes(module)
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        return sum(self.kind.work(shapes[n]) for n in trained if taken is None or n in taken)


def plan_optimiser(registry: Registry, name: str, settings: Optimiser) -> PlannedOptimiser:
    """Plan the optimiser of a stage.

    Raises:
        UsageError: an algorithm, wrapper, schedule or option does not exist or has an invalid value.
    """
    where = f"stages.{name}.optimiser"
    kind: OptimiserKind = registry.create("optimiser", settings.algorithm, where=f"{where}.algorithm")
    validated(kind.Options, settings.options, f"{where}.options")
    wrapped = 0
    for wrapper, options in settings.wrap.items():
        chosen: type[OptimiserWrapper] = registry.resolve(registry.get("wrapper", wrapper, where=f"{where}.wrap"))
        validated(chosen.Options, options or {}, f"{where}.wrap.{wrapper}")
        wrapped += 1
    spec = registry.get("schedule", settings.schedule.name, where=f"{where}.schedule")
    schedule: type[Schedule] = registry.resolve(spec)
    validated(schedule.Options, settings.schedule.options, f"{where}.schedule")
    rest: Any = kind if kind.rest == settings.algorithm else registry.create("optimiser", kind.rest)
    return PlannedOptimiser(kind, rest, 1 + wrapped)
