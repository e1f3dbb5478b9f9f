"""The two adapters of a conversion: the source of the teacher and the target that defines the student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel

from xarch.contracts.batch import Batch
from xarch.contracts.bench import BenchCase
from xarch.contracts.control import Control
from xarch.contracts.data import DataInfo
from xarch.contracts.export import Divergence, ExportGraph, ParityCase, Profile
from xarch.contracts.local import Solver
from xarch.contracts.model import Initialisation, Student, TapModel, Teacher
from xarch.contracts.options import Options
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError


@dataclass(frozen=True)
class SourceInfo:
    """Description of a teacher without loading its weights.

    Attributes:
        family: name of its family.
        facts: the family's facts.
        parameters: number of parameters.
        weight_bytes: bytes of the weights on disk.
        title: short human description.
        details: further facts for ``inspect`` and the report (licence, revision, files).
        warnings: warnings to show before converting.
        constants: name -> shape of what ``Teacher.constants`` will return.
        weights: names that ``Teacher.weights`` will have, if the headers list them; the plan then checks that the
            student's initialisation accounts for each. None: checked when the weights are loaded.
        processor: whether the teacher has a tokenizer or image processor; None: known when it is loaded.
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
    processor: bool | None = None


class SourceAdapter(ABC):
    """Reads teachers of one scheme (``hf:``, ``gguf:``, ...)."""

    Options: ClassVar[type[BaseModel]] = Options

    def tiny(self, options: BaseModel) -> BaseModel:
        """Return options for the same architecture cut to two layers, for ``--tiny``.

        Raises:
            UsageError: this source does not support it.
        """
        raise UsageError(f"{type(self).__name__} does not support --tiny; run without it")

    @abstractmethod
    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        """Describe the teacher from its configuration and headers only.

        Raises:
            UsageError: the reference does not exist, or the model is not supported.
        """

    @abstractmethod
    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> Teacher:
        """Load the weights; the result is in eval mode and no parameter requires gradients."""

    def random(self, ref: str, options: BaseModel, *, device: torch.device, seed: int) -> Teacher:
        """Return the same architecture with random weights (``ref: random``, a control for any method).

        Raises:
            PlanError: this source does not support it.
        """
        raise PlanError(f"{type(self).__name__} does not support teachers with random weights")


class TargetAdapter(ABC):
    """Builds and exports students of one architecture.

    Class attributes:
        Options: options of the student.
        ExportOptions: options of its export (``export.options``).
    """

    Options: ClassVar[type[BaseModel]] = Options
    ExportOptions: ClassVar[type[BaseModel]] = Options

    def tiny(self, options: BaseModel) -> BaseModel:
        """Return options that fit a teacher cut to two layers, for ``--tiny``; by default unchanged."""
        return options

    def facts_from_data(self, data: DataInfo, options: BaseModel) -> Any:
        """Return the facts to build from without a teacher (``teacher: none``).

        Raises:
            PlanError: this target needs a teacher.
        """
        raise PlanError(
            f"{type(self).__name__} needs a teacher", "--teacher SCHEME:REF; `xarch list sources` shows the schemes"
        )

    @abstractmethod
    def build(self, facts: Any, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device) -> Student:
        """Build a student with fresh weights; under ``device("meta")`` no memory is allocated.

        Raises:
            PlanError: the teacher's architecture cannot be converted by this target, with the reason.
        """

    def own_weights(self, student: Student, options: BaseModel) -> Collection[str]:
        """Load weights of the student's own that its options name (a checkpoint, pretrained weights) into a built
        student, before :meth:`initialise`; return the names of these tensors. By default none.

        On the meta device nothing is loaded: the plan asks for the names.

        Raises:
            UsageError: the weights cannot be read, or do not fit.
        """
        return ()

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        """Copy and map the teacher's weights into a built student; by default nothing is copied. A planned copy that
        does not happen is an error.

        Raises:
            PlanError: a teacher tensor is missing or has another shape.
        """
        return self.initialisation(student.facts, student)

    def initialisation(self, facts: Any, student: Student) -> Initialisation:
        """Return what :meth:`initialise` will do, from the architecture alone (used by the plan)."""
        return Initialisation(new=tuple(student.module.state_dict()))

    def forecast(self, student: Student, load: Callable[[], Teacher]) -> Mapping[str, str]:
        """Return what only the teacher's weights tell of the student before any training, by name, for the plan: the
        error of a decomposition. By default nothing, and no weights are loaded.

        Args:
            student: on the meta device. load: loads the teacher, which takes its time and memory.
        """
        return {}

    def view(self, teacher: Teacher) -> Teacher:
        """Return the teacher as seen by this target's matches: kept positions, derived taps, other layouts (default:
        unchanged)."""
        return teacher

    def view_taps(self, facts: Any, options: BaseModel, taps: Mapping[str, Tap]) -> Mapping[str, Tap]:
        """Return the taps of :meth:`view`, from the teacher's facts and taps; used by the plan."""
        return taps

    def solver(self, student: Student, site: str, options: Mapping[str, Any]) -> Solver:
        """Return the closed-form solver of one site, for a stage of kind ``closed_form``."""
        raise ValueError(f"{type(self).__name__} has no closed-form solver")

    def solver_options(self) -> type[BaseModel]:
        """Return the options of :meth:`solver`, validated by the plan."""
        return Options

    def recipe(self, facts: Any, options: BaseModel) -> str:
        """Return the name of the recipe or method used by default."""
        return ""

    def metric(self, facts: Any, options: BaseModel) -> str | None:
        """Return the name of the metric used by default: that of the student's family, unless overridden."""
        return None

    def controls(self, teacher: Teacher, student: Student) -> Mapping[str, Control] | None:
        """Return what a student must beat, by name; None for the controls of the student's family."""
        return None

    def control_names(self, student: Student) -> Collection[str] | None:
        """Return the names of :meth:`controls`, from the architecture alone: the plan counts their evaluation. None for
        those of the student's family."""
        return None

    def processor(self, teacher: Teacher | None) -> Any:
        """Return the tokenizer or image processor of the student; by default the teacher's."""
        return None if teacher is None else teacher.processor()

    @abstractmethod
    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        """Return the graphs to export for a profile."""

    def teacher_graphs(self, teacher: Teacher, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        """Return the teacher as graphs of the same form, for the bench to compare speeds; by default none. Graphs with
        the same name are compared. They are measured and never shipped.

        Raises:
            PlanError: this teacher has no such form, with the reason.
        """
        return ()

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        """Return comparisons in addition to the engine's own, which run every graph that declares ``reads`` and
        ``gives`` on held-out batches: procedures over several graphs (prefill, then decode), rendered views."""
        return ()

    def calibration_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        """Return the cases on which 8-bit ranges are measured; by default the parity cases, on calibration data. Ranges
        belong to weights, so a graph whose weights are all measured in other graphs needs no case.
        """
        return self.parity_cases(student, graphs, batches, profile)

    def divergence(self, student: Student, batches: Sequence[Batch]) -> Divergence | None:
        """Return a measure of the student's predictions on calibration data, by which an export chooses the bits of
        weights; by default none: all have those of the profile."""
        return None

    def exported(self, folder: Path, student: Student, threads: int) -> TapModel | None:
        """Return the graphs of an export as a model with taps of the student, so that a metric evaluates the files;
        None for graphs that declare what they read and give, which need no code of the target."""
        return None

    def exported_point(self, folder: Path, student: Student, threads: int, point: str) -> TapModel | None:
        """Return the same for the graphs of a further operating point of the export, named GRAPH-POINT; None if only
        the whole export can be evaluated."""
        return None

    def bench_cases(self, graphs: Sequence[str], folder: Path) -> Iterable[BenchCase] | None:
        """Return timed procedures over the exported graphs of a folder; None for those of the student's family."""
        return None
