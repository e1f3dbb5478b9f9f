"""Base of targets whose students are decoders with other mixers in some layers; everything else is the teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel

from xarch import (
    Batch,
    Divergence,
    ExportGraph,
    Initialisation,
    ParityCase,
    PlanError,
    Profile,
    Student,
    TapModel,
    TargetAdapter,
    Teacher,
)
from xarch_decoder.controls import bounded_teacher
from xarch_decoder.copying import check_initialisation, copy_trunk, trunk_initialisation
from xarch_decoder.divergence import decoder_divergence
from xarch_decoder.export import DecoderExport, decoder_graphs
from xarch_decoder.exported import ExportedDecoder
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.layer_choice import LayerOptions
from xarch_decoder.parity import decoder_parity
from xarch_decoder.student import DecoderStudent

S = TypeVar("S", bound=DecoderStudent)


class DecoderTarget(TargetAdapter, Generic[S]):
    """Copies what the mixers leave as it is, and exports prefill and decode graphs. Subclasses build the student.

    Class attributes:
        Options: of the target, based on :class:`LayerOptions`.
        students: the type that ``build`` returns.
    """

    Options = LayerOptions
    ExportOptions = DecoderExport
    students: ClassVar[type[DecoderStudent]]

    def own(self, student: Student) -> S:
        """Return a student as what this target builds.

        Raises:
            PlanError: another target built it.
        """
        if not isinstance(student, self.students):
            raise PlanError(f"this student is a {type(student).__name__}, the target builds {self.students.__name__}")
        return cast(S, student)

    def tiny(self, options: BaseModel) -> BaseModel:
        return options.model_copy(update={"layers": cast(LayerOptions, options).layers.tiny()})

    def initialisation(self, facts: DecoderFacts, student: Student) -> Initialisation:
        return trunk_initialisation(facts, self.own(student))

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        done = copy_trunk(self.own(student), teacher)
        check_initialisation(self.own(student), done, teacher.weights())
        return done

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return decoder_graphs(self.own(student), profile, options)

    def teacher_graphs(self, teacher: Teacher, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        """Return the teacher with its own attention in the graphs of a student."""
        if teacher.family != "decoder":
            return ()
        return decoder_graphs(bounded_teacher(teacher, {}), profile, options)

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        return decoder_parity(self.own(student), graphs, batches, profile.dtype)

    def divergence(self, student: Student, batches: Sequence[Batch]) -> Divergence | None:
        return decoder_divergence(self.own(student), batches)

    def exported(self, folder: Path, student: Student, threads: int) -> TapModel:
        return ExportedDecoder(folder, self.own(student), threads=threads)

    def exported_point(self, folder: Path, student: Student, threads: int, point: str) -> TapModel | None:
        return ExportedDecoder(folder, self.own(student), threads=threads, point=point)
