"""The two adapters a conversion needs: where the teacher comes from and what the student is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph, ParityCase, Profile
from xarch.contracts.model import Initialisation, Solver, Student, Teacher
from xarch.errors import UsageError


class Options(BaseModel):
    """Base of every options model: unknown keys are errors, and ``xarch inspect`` renders the schema."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class SourceInfo:
    """A teacher described without loading its weights.

    Attributes:
        family: family contract, e.g. "decoder".
        facts: the family's facts dataclass.
        parameters: number of parameters.
        weight_bytes: bytes of the weights on disk.
        title: short human description.
        details: further facts for ``inspect`` and the report (licence, revision, files).
        warnings: what a user should know before converting.
    """

    family: str
    facts: Any
    parameters: int
    weight_bytes: int
    title: str
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class SourceAdapter(ABC):
    """Reads teachers of one scheme (``hf:``, ``gguf:``, ...)."""

    Options: type[BaseModel] = Options

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


class TargetAdapter(ABC):
    """Builds students of one architecture and knows their own export forms.

    Class attributes:
        Facts: the family's facts dataclass, with ``to_json`` and ``from_json``.
    """

    Options: type[BaseModel] = Options
    Facts: type[Any]

    def tiny(self, options: BaseModel) -> BaseModel:
        """Options that fit a teacher cut to two layers, for ``--tiny``; by default unchanged."""
        return options

    @abstractmethod
    def build(self, facts: Any, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device) -> Student:
        """Build a student; on ``device("meta")`` no memory is allocated.

        Raises:
            PlanError: the teacher's architecture cannot be converted by this target, with the reason.
        """

    @abstractmethod
    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        """Copy and map the teacher's weights into a student whose storage exists.

        Every tensor of the student must be written. A planned copy that does not happen is an error.

        Raises:
            PlanError: a tensor is missing in the teacher or has another shape.
        """

    @abstractmethod
    def initialisation(self, facts: Any, student: Student) -> Initialisation:
        """What :meth:`initialise` will do, from the architecture alone (used by the plan)."""

    def solver(self, student: Student, site: str, options: Mapping[str, Any]) -> Solver:
        """The closed-form solver of one site for a stage of kind ``closed_form``."""
        raise ValueError(f"{type(self).__name__} has no closed-form solver")

    @abstractmethod
    def recipe(self, facts: Any, options: BaseModel) -> str:
        """Name of the recipe used when the user names none."""

    @abstractmethod
    def export_graphs(self, student: Student, profile: Profile, options: Mapping[str, Any]) -> Sequence[ExportGraph]:
        """The graphs this student leaves as, for a target profile."""

    def teacher_graphs(self, teacher: Teacher, profile: Profile, options: Mapping[str, Any]) -> Sequence[ExportGraph]:
        """The teacher in the same graph forms, for the bench to compare speeds; by default there are none.

        Graphs of one name are compared with each other. They are measured and never shipped.

        Raises:
            PlanError: this teacher has no such form, with the reason.
        """
        return ()

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        """Comparisons on real inputs; by default every graph alone on its example inputs.

        Override to drive several graphs together and to use ``batches`` of held-out data.
        """
        from xarch.export.cases import single_graph_cases

        return single_graph_cases(graphs)

    def calibration_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        """What the ranges of 8-bit numbers are measured on; by default the parity cases, on other held-out data.

        Ranges belong to weights. A graph whose weights are all measured in others needs no case of its own.
        """
        return self.parity_cases(student, graphs, batches, profile)
