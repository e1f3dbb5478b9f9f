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
    """Registered by ``registry.optimiser``; chosen by ``optimiser: {algorithm: NAME, options: {…}}``.

    Class attributes:
        Options: its own options besides the learning rate and the weight decay that every stage has.
        rest: algorithm for parameters that :meth:`takes` leaves out.
    """

    Options: ClassVar[type[BaseModel]] = Options
    rest: ClassVar[str] = "adamw"

    def takes(self, module: nn.Module) -> set[str] | None:
        """Names of the parameters it is made for; None for all."""
        return None

    def rest_options(self, options: Any) -> Mapping[str, Any]:
        """Options of :attr:`rest` that the stage's options say; by default its own defaults."""
        return {}

    @abstractmethod
    def build(
        self, groups: Sequence[Mapping[str, Any]], lr: float, options: Any, *, fused: bool
    ) -> torch.optim.Optimizer:
        """The optimiser over groups of ``params``, ``multiple`` (of the learning rate) and ``weight_decay``.

        Its state must be tensors under string keys per parameter, as every optimiser of torch has it.
        """

    def work(self, shape: Sequence[int]) -> float:
        """Multiply-adds of one update of a parameter, where they count beside forward and backward."""
        return 0.0

    def moments(self) -> int:
        """Numbers it keeps for each parameter, for the plan's memory."""
        return 2


class OptimiserWrapper(ABC):
    """Registered like an optimiser; ``optimiser: {wrap: {NAME: {…}}}`` computes the gradient somewhere else (SAM)."""

    Options: ClassVar[type[BaseModel]] = Options

    @abstractmethod
    def perturb(self, parameters: Iterable[nn.Parameter], options: Any) -> Any:
        """Move the parameters by their gradients before the gradient is computed again; returns what undoes it."""

    @abstractmethod
    def restore(self, parameters: Iterable[nn.Parameter], moved: Any) -> None:
        """Undo :meth:`perturb`; the gradients of the moved place stay for the update."""


class Schedule(ABC):
    """A learning rate over a stage as a pure function of the step: nothing to save, nothing to drift. The warm-up comes
    before it and is the same for all, see ``xarch.optim.schedules.LearningRate``.

    Class attributes:
        Options: its own options besides warm-up and final value, ``schedule: {name: step, …}``.
    """

    Options: ClassVar[type[BaseModel]] = Options

    @abstractmethod
    def factor(self, step: float, steps: int, warm: int, options: Any, *, final: float) -> float:
        """Factor on the peak learning rate.

        Args:
            step: 0-based, at least ``warm``, also between two steps.
            steps: of the stage.
            warm: how many of them warm up.
            options: validated by :attr:`Options`.
            final: the factor at the end.
        """

    def falls_at(self, steps: int, options: Any) -> int:
        """The step at which it begins to fall, ``steps`` if it falls everywhere or never; an early end of the stage
        continues from there."""
        return steps

    def ending(self, options: Any) -> float | None:
        """Share of a shortened stage in which the rate falls to its end after a plateau; 0 ends the stage at once, None
        means that a plateau does not end it."""
        return 0.3
