"""The target ``whisper``: a speech model of some of a speech model's layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel

from xarch import (
    Batch,
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
from xarch_speech.export import SpeechExport, speech_graphs
from xarch_speech.exported import ExportedSpeech
from xarch_speech.facts import SpeechFacts
from xarch_speech.layout import Layout, SpeechOptions, cut, layout_of, teacher_name
from xarch_speech.model import SpeechModel
from xarch_speech.parity import transcript_parity
from xarch_speech.student import SpeechStudent, own


class WhisperTarget(TargetAdapter):
    """Every layer is one of the teacher's, and nothing is new."""

    Options = SpeechOptions
    ExportOptions = SpeechExport

    def tiny(self, options: BaseModel) -> BaseModel:
        return cast(SpeechOptions, options).model_copy(update={"encoder": None, "decoder": None})

    def build(
        self, facts: SpeechFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> SpeechStudent:
        """Build the layers that the options keep.

        Raises:
            PlanError: the teacher has fewer.
        """
        layout = layout_of(facts, cast(SpeechOptions, options))
        said = {
            "layers": f"{len(layout.encoder)} of the teacher's {facts.encoder} encoder layers, and decoder layers "
            f"{', '.join(map(str, layout.decoder))} of its {facts.decoder}"
        }
        return SpeechStudent(cut(facts, layout), layout.encoder, layout.decoder, traits=said, device=device)

    def initialisation(self, facts: SpeechFacts, student: Student) -> Initialisation:
        made = own(student)
        sources = _sources(made)
        with torch.device("meta"):
            theirs = SpeechModel(facts).state_dict()
        read = set(sources.values())
        return Initialisation(
            copied=tuple(sources),
            unused=tuple(name for name in theirs if name not in read),
            sources={name: (of,) for name, of in sources.items() if name != of},
        )

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        """Copy the teacher's tensors, bit for bit.

        Raises:
            PlanError: the teacher lacks a tensor, or its shape differs; nothing has been written.
        """
        made, weights = own(student), teacher.weights()
        state, sources = made.module.state_dict(), _sources(made)
        for name, of in sources.items():
            seen = tuple(weights[of].shape) if of in weights else None
            if seen != tuple(state[name].shape):
                raise PlanError(f"the student copies {name!r} {tuple(state[name].shape)} from {of!r}, which has {seen}")
        with torch.no_grad():
            for name, of in sources.items():
                state[name].copy_(weights[of])
        return self.initialisation(teacher.facts, student)

    def recipe(self, facts: SpeechFacts, options: BaseModel) -> str:
        return "distil-whisper"

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return speech_graphs(own(student).module, profile, options)

    def teacher_graphs(self, teacher: Teacher, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        """Return the teacher in the same form."""
        if not isinstance(teacher.module, SpeechModel):
            raise PlanError(f"a teacher of the family {teacher.family!r} has no graphs to compare with")
        return speech_graphs(teacher.module, profile, options)

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        return transcript_parity(own(student), graphs, batches)

    def exported(self, folder: Path, student: Student, threads: int) -> TapModel:
        return ExportedSpeech(folder, own(student), threads=threads)


def _sources(student: SpeechStudent) -> dict[str, str]:
    """Return the student's tensor -> the teacher's."""
    layout = Layout(student.encoder, student.decoder)
    return {name: teacher_name(name, layout) for name in student.module.state_dict()}
