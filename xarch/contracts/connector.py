"""Connector: a trained module between a student tap and an objective, dropped after the stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.objective import Coupling, MatchContext
from xarch.contracts.options import Options
from xarch.contracts.tap import Tap


class Connector(nn.Module, ABC):
    """Module built once per match (``through: NAME``); it is trained, clipped, checkpointed and counted with the stage.

    Class attributes:
        Options: options of the connector (``through: {connector: NAME, options: {…}}``).
        accepts: supported student layouts; "*" for any.
    """

    Options: ClassVar[type[BaseModel]] = Options
    accepts: ClassVar[frozenset[str]] = frozenset({"*"})

    def __init__(self, student: Tap, teacher: Tap | None, options: BaseModel, context: MatchContext) -> None:
        super().__init__()
        self.student_tap, self.teacher_tap, self.options, self.context = student, teacher, options, context

    @property
    @abstractmethod
    def tap(self) -> Tap:
        """Declaration of its output; the objective is checked against it."""

    @property
    def couples(self) -> Coupling:
        """See :attr:`Objective.couples`."""
        return "batch" if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules()) else "sample"

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        """Return whether it combines positions of ``student`` and needs a mask of this layout to leave out those that
        do not count, such as padding; by default no."""
        return False

    @abstractmethod
    def forward(self, value: Any, batch: Batch, *, mask: Tensor | None = None) -> Any:
        """Return the student's value in the form declared by :attr:`tap`.

        Args:
            mask: 0/1 weights of the positions of ``value``, in a layout accepted by :meth:`masks`; None counts all.
        """
