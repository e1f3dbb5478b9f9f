"""The family, its target, metric and batch step pass the kit that third-party plugins pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.plugins.encdec.encdec_models import decoder, pairs, student_of
from xarch import Batch, Student, TensorInfo
from xarch.testing import BatchStepConformance, FamilyConformance, MetricConformance, TargetConformance


class TestFamily(FamilyConformance):
    family = "encdec"


class TestAnswers(MetricConformance):
    metric = "answers"
    family = "encdec"
    needs_teacher = False


@pytest.mark.slow  # rouge-score imports nltk, which takes seconds
class TestWrittenAnswers(MetricConformance):
    metric = "written-answers"
    options: ClassVar[Mapping[str, Any]] = {"pairs": 2, "tokens": 4}
    family = "encdec"
    needs_teacher = False


class TestOpenEncoder(BatchStepConformance):
    step = "open-encoder"
    family = "encdec"


class TestWriteAnswers(BatchStepConformance):
    step = "write-answers"
    options: ClassVar[Mapping[str, Any]] = {"share": 0.7}
    models = ("input_ids", "attention_mask", "decoder_input_ids")
    tensors: ClassVar[Mapping[str, TensorInfo]] = {
        "input_ids": TensorInfo("BS", dtype="int64"),
        "attention_mask": TensorInfo("BS", dtype="int64"),
        "decoder_input_ids": TensorInfo("BT"),
        "answer_mask": TensorInfo("BT", dtype="float32"),
        "input_ids@teacher": TensorInfo("BL"),
        "segment_ids@teacher": TensorInfo("BL"),
    }

    def batch(self) -> Batch:
        return pairs()

    def student(self) -> Student:
        return student_of(decoder())


class TestMerged(TargetConformance):
    adapter = "encdec"
    local = False

    @pytest.mark.slow
    def test_tiny_conversion_to_verified_onnx(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().test_tiny_conversion_to_verified_onnx(tmp_path, monkeypatch)


class TestOwnAttention(TestMerged):
    options: ClassVar[Mapping[str, Any]] = {"cross": "self_copy", "plan": "copy", "norm": "dual", "share": True}
    # A second conversion would show no more than the export of such a student, see test_encdec_export.py.
    test_tiny_conversion_to_verified_onnx = None  # type: ignore[assignment]
