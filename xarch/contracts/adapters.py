"""The two adapters a conversion needs: where the teacher comes from and what the student is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel

from xarch.contracts.batch import Batch
from xarch.contracts.bench import BenchCase
from xarch.contracts.data import DataInfo
from xarch.contracts.export import ExportGraph, ParityCase, Profile
from xarch.contracts.local import Solver
from xarch.contracts.model import Initialisation, Student, Teacher
from xarch.contracts.options import Options
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError


@dataclass(frozen=True)
class SourceInfo:
    """A teacher described without loading its weights.

    Attributes:
        family: name of its family.
        facts: the family's facts.
        parameters: number of parameters.
        weight_bytes: bytes of the weights on disk.
        title: short human description.
        details: further facts for ``inspect`` and the report (licence, revision, files).
        warnings: what a user should know before converting.
        constants: name -> shape of what ``Teacher.constants`` will give.
        weights: names that ``Teacher.weights`` will have, where the headers tell; then the plan already proves that
            the student's initialisation accounts for each. None: it is proven when the weights are loaded.
    """

    family: str
    facts: Any
    parameters: int
    weight_bytes: int
    title: str
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    constants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weights: tuple[str, ...] | None = None


class SourceAdapter(ABC):
    """Reads teachers of one scheme (``hf:``, ``gguf:``, ...)."""

    Options: ClassVar[type[BaseModel]] = Options

    def tiny(self, options: BaseModel) -> BaseModel:
        """Options that give the same architecture cut to two layers, for ``--tiny``.

        Raises:
            UsageError: this source cannot be cut.
        """
        raise UsageError(f"{type(self).__name__} cannot cut its teachers; run without --tiny")

    @abstractmethod
    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        """Describe the teacher from its configuration and headers only.

        Raises:
            UsageError: the reference does not exist, or is a model this adapter does not know.
        """

    @abstractmethod
    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> Teacher:
        """Load the weights; the result is in eval mode and requires no gradient anywhere."""

    def random(self, ref: str, options: BaseModel, *, device: torch.device, seed: int) -> Teacher:
        """The same architecture with random weights (``ref: random``, the control of every method).

        Raises:
            PlanError: this source cannot make one.
        """
        raise PlanError(f"{type(self).__name__} cannot make a teacher with random weights")


class TargetAdapter(ABC):
    """Builds students of one architecture and knows their own export forms.

    Class attributes:
        Options: options of the student.
        ExportOptions: options of its export (``export.options``).
    """

    Options: ClassVar[type[BaseModel]] = Options
    ExportOptions: ClassVar[type[BaseModel]] = Options

    def tiny(self, options: BaseModel) -> BaseModel:
        """Options that fit a teacher cut to two layers, for ``--tiny``; by default unchanged."""
        return options

    def facts_from_data(self, data: DataInfo, options: BaseModel) -> Any:
        """Facts to build from where there is no teacher (``teacher: none``).

        Raises:
            PlanError: this target needs a teacher.
        """
        raise PlanError(f"{type(self).__name__} needs a teacher")

    @abstractmethod
    def build(self, facts: Any, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device) -> Student:
        """Build a student with fresh weights; on ``device("meta")`` no memory is allocated.

        Raises:
            PlanError: the teacher's architecture cannot be converted by this target, with the reason.
        """

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        """Copy and map the teacher's weights into a built student; by default nothing is taken over.

        A planned copy that does not happen is an error.

        Raises:
            PlanError: a tensor is missing in the teacher or has another shape.
        """
        return self.initialisation(student.facts, student)

    def initialisation(self, facts: Any, student: Student) -> Initialisation:
        """What :meth:`initialise` will do, from the architecture alone (used by the plan)."""
        return Initialisation(new=tuple(student.module.state_dict()))

    def view(self, teacher: Teacher) -> Teacher:
        """The teacher as this target's matches see it: kept positions, derived taps, other layouts (default: as is)."""
        return teacher

    def view_taps(self, facts: Any, options: BaseModel, taps: Mapping[str, Tap]) -> Mapping[str, Tap]:
        """Taps of :meth:`view`, from the teacher's facts and taps; used by the plan."""
        return taps

    def solver(self, student: Student, site: str, options: Mapping[str, Any]) -> Solver:
        """The closed-form solver of one site for a stage of kind ``closed_form``."""
        raise ValueError(f"{type(self).__name__} has no closed-form solver")

    def solver_options(self) -> type[BaseModel]:
        """Options of :meth:`solver`, validated by the plan."""
        return Options

    def recipe(self, facts: Any, options: BaseModel) -> str:
        """Name of the recipe or method used when the user names none."""
        return ""

    def metric(self, facts: Any, options: BaseModel) -> str | None:
        """Name of the metric used when the user names none; by default that of the student's family."""
        return None

    def processor(self, teacher: Teacher | None) -> Any:
        """Tokenizer or image processor of the student; by default the teacher's."""
        return None if teacher is None else teacher.processor()

    @abstractmethod
    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        """The graphs this student leaves as, for a profile."""

    def teacher_graphs(self, teacher: Teacher, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        """The teacher in the same graph forms, for the bench to compare speeds; by default there are none.

        Graphs of one name are compared with each other. They are measured and never shipped.

        Raises:
            PlanError: this teacher has no such form, with the reason.
        """
        return ()

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        """Comparisons on top of the engine's own, which run every graph that says what it ``reads`` and ``gives`` on
        held-out batches: procedures over several graphs (prefill, then decode), rendered views."""
        return ()

    def calibration_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        """What the ranges of 8-bit numbers are measured on; by default the parity cases, on calibration data.

        Ranges belong to weights. A graph whose weights are all measured in others needs no case of its own.
        """
        return self.parity_cases(student, graphs, batches, profile)

    def bench_cases(self, graphs: Sequence[str], folder: Path) -> Iterable[BenchCase] | None:
        """Timed procedures over the exported graphs of a folder; None for those of the student's family."""
        return None
