"""Family, source, target, data, metric and batch step of speech pass the kit that third-party plugins pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tests.plugins.speech.speech_models import FACTS, student_of, whisper
from xarch import Student, Teacher, TensorInfo, load_teacher
from xarch.testing import (
    BatchStepConformance,
    DataConformance,
    FamilyConformance,
    MetricConformance,
    SourceConformance,
    TargetConformance,
)
from xarch_speech.testing import tiny_tones, tiny_whisper


class TestFamily(FamilyConformance):
    family = "speech"


class TestWhisperSource(SourceConformance):
    options: ClassVar[Mapping[str, Any]] = {"seconds": 0.5}

    def make_ref(self, folder: Path) -> str:
        return tiny_whisper(folder / "whisper")


class TestWordErrors(MetricConformance):
    metric = "word-errors"
    options: ClassVar[Mapping[str, Any]] = {"tokens": 8}
    family = "speech"
    needs_teacher = False


class TestSpeechData(DataConformance):
    sample: ClassVar[Mapping[str, Any]] = {"tokens": 24}

    def make_ref(self, folder: Path) -> str:
        return tiny_tones(folder / "tones")

    def context(self, folder: Path) -> Mapping[str, Any]:
        teacher = load_teacher(tiny_whisper(folder / "whisper"))
        return {"facts": teacher.facts, "processors": dict.fromkeys(("teacher", "student"), teacher.processor())}


class TestHearOnce(BatchStepConformance):
    step = "hear-once"
    models = ("input_features",)
    tensors: ClassVar[Mapping[str, TensorInfo]] = {
        "input_features": TensorInfo("BMF", {"M": FACTS.mels, "F": FACTS.frames}, dtype="float32")
    }

    def teacher(self) -> Teacher:
        return whisper()

    def student(self) -> Student:
        return student_of(whisper())


class TestWhisperTarget(TargetConformance):
    adapter = "whisper"
    local = False

    # test_whisper_base.py converts from end to end, and test_pairs_and_profiles.py exports.
    test_tiny_conversion_to_verified_onnx = None  # type: ignore[assignment]
