"""The source and the target of timm pass xarch's own kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from xarch import load_weights, weights_digest
from xarch.testing import SourceConformance, TargetConformance
from xarch_image.testing import tiny_classifier
from xarch_timm.model import TimmTeacher
from xarch_timm.source import TimmSource


class TestTimmSource(SourceConformance):
    def make_ref(self, folder: Path) -> str:
        return tiny_classifier(folder)


class TestTimmTarget(TargetConformance):
    adapter = "timm"
    local = False
    options: ClassVar[dict[str, Any]] = {"model": "test_vit", "arguments": {"patch_size": 8, "depth": 2}, "size": 32}

    def test_tiny_conversion_to_verified_onnx(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Training leaves the teacher as it was, running statistics included."""
        loaded: list[TimmTeacher] = []
        load = TimmSource.load

        def keeping(*given: Any, **named: Any) -> TimmTeacher:
            loaded.append(load(*given, **named))
            return loaded[-1]

        monkeypatch.setattr(TimmSource, "load", keeping)
        super().test_tiny_conversion_to_verified_onnx(tmp_path, monkeypatch)
        before = weights_digest(load_weights(tmp_path / "teacher.safetensors"))
        assert loaded
        for teacher in loaded:
            assert weights_digest(teacher.module.state_dict()) == before
            assert not teacher.module.training
            assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())


@pytest.mark.slow
class TestTimmTargetOfTwoHeads(TargetConformance):
    adapter = "timm"
    local = False
    options: ClassVar[dict[str, Any]] = {
        "model": "deit_tiny_distilled_patch16_224",
        "arguments": {"patch_size": 7, "depth": 2, "embed_dim": 64, "num_heads": 2},
        "size": 28,
    }
