"""Optimisers and learning-rate schedules as registered kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import nn

from xarch.contracts.options import Options


class OptimiserKind(ABC):
    """Base of optimisers, registered with ``registry.optimiser``; chosen by ``optimiser: {algorithm: NAME, options:
    {…}}``.

    Class attributes:
        Options: its options besides learning rate and weight decay, which every stage has.
        rest: algorithm for parameters that :meth:`takes` excludes.
    """

    Options: ClassVar[type[BaseModel]] = Options
    rest: ClassVar[str] = "adamw"

    def takes(self, module: nn.Module) -> set[str] | None:
        """Return the names of the parameters it optimises; None for all."""
        return None

    def rest_options(self, options: Any) -> Mapping[str, Any]:
        """Return the options of :attr:`rest`, derived from the stage's options; by default its defaults."""
        return {}

    @abstractmethod
    def build(
        self, groups: Sequence[Mapping[str, Any]], lr: float, options: Any, *, fused: bool
    ) -> torch.optim.Optimizer:
        """Return the optimiser over groups of ``params``, ``multiple`` (of the learning rate) and ``weight_decay``. Its
        state must be tensors under string keys per parameter, as in torch optimisers.
        """

    def work(self, shape: Sequence[int]) -> float:
        """Return the multiply-adds of one update of a parameter, if significant next to forward and backward."""
        return 0.0

    def moments(self) -> int:
        """Return how many numbers it keeps per parameter element, for the plan's memory estimate."""
        return 2


class OptimiserWrapper(ABC):
    """Base of optimiser wrappers: ``optimiser: {wrap: {NAME: {…}}}`` computes the gradient at another point (SAM)."""

    Options: ClassVar[type[BaseModel]] = Options

    @abstractmethod
    def perturb(self, parameters: Iterable[nn.Parameter], options: Any) -> Any:
        """Move the parameters along their gradients before the gradient is recomputed; return what :meth:`restore`
        needs."""

    @abstractmethod
    def restore(self, parameters: Iterable[nn.Parameter], moved: Any) -> None:
        """Undo :meth:`perturb`; the gradients at the perturbed point are kept for the update."""


class Schedule(ABC):
    """Learning-rate schedule over a stage as a pure function of the step, so there is no state to save. The warm-up
    before it is the same for all schedules, see ``xarch.optim.schedules.LearningRate``.

    Class attributes:
        Options: its options besides warm-up and final value, ``schedule: {name: step, …}``.
    """

    Options: ClassVar[type[BaseModel]] = Options

    @abstractmethod
    def factor(self, step: float, steps: int, warm: int, options: Any, *, final: float) -> float:
        """Return the factor on the peak learning rate.

        Args:
            step: 0-based, at least ``warm``, may be fractional.
            steps: number of steps of the stage.
            warm: number of warm-up steps.
            options: validated by :attr:`Options`.
            final: factor at the last step.
        """

    def falls_at(self, steps: int, options: Any) -> int:
        """Return the step at which it begins to decay, ``steps`` if it decays throughout or never; a stage that ends
        early continues from there."""
        return steps

    def decay_share(self, options: Any) -> float | None:
        """Return the share of a shortened stage in which the rate decays after a plateau; 0 ends the stage at once,
        None means that a plateau does not end it."""
        return 0.3
