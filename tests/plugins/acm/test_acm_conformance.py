"""The target, its stages and objectives pass the kit that third-party plugins pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.plugins.acm.acm_models import tiny_vit
from xarch import Tap
from xarch.testing import ObjectiveConformance, StageConformance, TargetConformance


class TestAcmOfPictures(TargetConformance):
    adapter = "acm"
    family = "image"

    def make_teacher(self, folder: Path) -> str:
        return tiny_vit(folder)

    @pytest.mark.slow
    def test_tiny_conversion_to_verified_onnx(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().test_tiny_conversion_to_verified_onnx(tmp_path, monkeypatch)


@pytest.mark.slow
class TestAcmOfText(TargetConformance):
    adapter = "acm"
    family = "decoder"
    options: ClassVar[Mapping[str, Any]] = {"modules": ["mlp", "q", "o"]}


GATES = {
    name: Tap(name, "logits", "BLK", {"K": 5}, {"cost": cost, "gate": 1.0, "least": 0, "learners": 4, "budget": 0.5})
    for name, cost in (("a.choice", 10.0), ("b.choice", 30.0))
}


class OfChoices(ObjectiveConformance):
    student: ClassVar[Any] = GATES
    teacher: ClassVar[Any] = None

    def student_value(self, generator: torch.Generator) -> Any:
        return {name: value.softmax(-1) for name, value in super().student_value(generator).items()}


class TestBudget(OfChoices):
    objective = "acm-budget"


class TestEntropy(OfChoices):
    objective = "acm-entropy"


class TestSpread(OfChoices):
    objective = "acm-spread"
    # The difference of a sample from itself has no second derivative.
    smooth = False


class TestPrefixes(ObjectiveConformance):
    objective = "acm-prefixes"
    student: ClassVar[Any] = Tap("prefixes", "hidden", "BLND", {"N": 3, "D": 4})


class TestEstimates(ObjectiveConformance):
    objective = "acm-estimates"
    student: ClassVar[Any] = Tap("gate", "logits", "BLK", {"K": 5})
    teacher: ClassVar[Any] = Tap("lost", "loss", "BLK", {"K": 5})

    def teacher_value(self, generator: torch.Generator) -> Any:
        return super().teacher_value(generator).exp()


class OfStages(StageConformance):
    family = "image"
    target = "acm"

    def configuration(self, folder: Path) -> dict[str, Any]:
        return {**super().configuration(folder), "teacher": tiny_vit(folder)}


@pytest.mark.slow
class TestThreshold(OfStages):
    kind = "acm-threshold"
    settings: ClassVar[Mapping[str, Any]] = {"options": {"samples": 4}, "batch": {"size": 2}}


@pytest.mark.slow
class TestTables(OfStages):
    kind = "acm-tables"
    settings: ClassVar[Mapping[str, Any]] = {"options": {"samples": 4}, "batch": {"size": 2}}
