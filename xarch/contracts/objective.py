"""Objective: distance between a student tap and its right side, one number per sample."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.options import Options
from xarch.contracts.tap import Tap

Coupling = Literal["sample", "batch"]


@dataclass(frozen=True)
class MatchContext:
    """Facts available to an objective or a connector when it is built. The plan builds both on the meta device.

    Attributes:
        match: name of the match.
        steps: number of optimiser steps of the stage.
        data: facts of the data set (``classes``, ``class_counts``, ``samples``), see ``DataInfo.facts``.
        teacher, student: constants of each side, e.g. ``classifier.weight``; on the meta device while planning.
        weights: teacher name -> its weight, for objectives that average several.
    """

    match: str = ""
    steps: int = 1
    data: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Tensor] = field(default_factory=dict)
    student: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """Module built once per match from the declarations of its two sides.

    Class attributes:
        Options: options of a match; numbers may be given as schedules.
        accepts: supported (student layout, right layout) pairs; "*" matches any layout. The right layout is
            "none" for a term of the student alone.
        units: unit of the value, e.g. "nats/token".
        joins: whether it takes several student taps at once (``join: true``) as a mapping from tap to value.
        aux: names of further values that a match may give it; those that :meth:`forward` has as arguments of their own
            need not be said.
        ensembles: whether its right side may be a mapping from teacher to value (``teacher: "*:TAP"``).
    """

    Options: ClassVar[type[BaseModel]] = Options
    accepts: ClassVar[frozenset[tuple[str, str]]] = frozenset()
    units: ClassVar[str] = ""
    joins: ClassVar[bool] = False
    ensembles: ClassVar[bool] = False
    aux: ClassVar[frozenset[str]] = frozenset()

    options: Any
    """Validated options; if one is a schedule, the engine updates them before every step."""
    monitored: bool = True
    """Whether :meth:`monitor` is read after the next forward pass; the engine sets it. Figures that take time may be
    left out where it is False."""

    def __init__(self, student: Any, teacher: Any, options: BaseModel, context: MatchContext) -> None:
        """``student`` and ``teacher``: a :class:`Tap`, a mapping of name to Tap (joined), or None (no right side)."""
        super().__init__()
        self.student_tap, self.teacher_tap, self.options, self.context = student, teacher, options, context

    @property
    def couples(self) -> Coupling:
        """ "batch" if the loss of a sample depends on other samples (correlations, contrast, batch statistics); such a
        batch is never split into micro-batches or across processes. By default "batch" if a submodule normalises over
        the batch, else "sample".
        """
        return "batch" if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules()) else "sample"

    @classmethod
    def takes(cls, student: Tap, teacher: Tap | None) -> bool:
        """Return whether this pair of layouts can be compared."""
        right = "none" if teacher is None else teacher.layout
        return any(a in ("*", student.layout) and b in ("*", right) for a, b in cls.accepts)

    @classmethod
    def arguments(cls) -> dict[str, bool]:
        """Name of every further value that a match may give it -> whether a match has to."""
        given = inspect.signature(cls.forward).parameters.values()
        own = {p.name: p.default is p.empty for p in given if p.kind is p.KEYWORD_ONLY and p.name != "mask"}
        return dict.fromkeys(cls.aux, False) | own

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        """Return why the sizes of this pair cannot be compared, or None; by default equal layouts need equal sizes."""
        if teacher is None or student.layout != teacher.layout:
            return None
        shared = sorted(student.shape.keys() & teacher.shape.keys())
        return (
            "; ".join(
                f"{k}: {student.shape[k]} != {teacher.shape[k]}" for k in shared if student.shape[k] != teacher.shape[k]
            )
            or None
        )

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        """Return whether a mask of this layout can select positions of ``student``; by default its dimensions must be
        the first ones of the tap ("B" and "BL" for "BLD")."""
        return student.dense and student.layout.startswith(layout)

    @abstractmethod
    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        """Return the loss of each sample [B] in float32, *summed* over what :meth:`weight` counts.

        Args:
            student, teacher: values of the two sides as declared (mappings if joined or averaged).
            batch: the batch as the student sees it.
            mask: 0/1 weights of the positions to count, in a layout accepted by :meth:`masks`.
            aux: further values named by the match.
        """

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        """Return the weight of each sample [B]: the engine minimises sum(loss) / sum(weight) over the whole effective
        batch, across micro-batches and processes. By default 1 per sample. ``target`` (the right side's value) is
        passed only if ``weighs_target`` is True.
        """
        return torch.ones(len(batch), device=batch.device)

    weighs_target: ClassVar[bool] = False
    """Whether :meth:`weight` reads the right side's value; the values of the whole batch are then computed first."""

    def monitor(self) -> dict[str, float]:
        """Return further figures of the last forward pass, logged at the logging interval (relative error,
        agreement)."""
        return {}

    summed: ClassVar[frozenset[str]] = frozenset()
    """Names of buffers that forward passes in train mode add to. Before :meth:`after_step` they hold the sum over all
    micro-batches and processes of the step; after it the engine sets them to zero."""

    def after_step(self) -> None:
        """Update state (running statistics, memory banks) once after every optimiser step, never per micro-batch."""
