"""The target and its stage pass the kit that third-party plugins pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xarch.testing import StageConformance, TargetConformance


class TestMemory(TargetConformance):
    adapter = "memory"
    options: ClassVar[Mapping[str, Any]] = {"layers": {"replace": [1]}, "bytes_a_layer": 9000}

    @pytest.mark.slow
    def test_tiny_conversion_to_verified_onnx(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().test_tiny_conversion_to_verified_onnx(tmp_path, monkeypatch)


class TestAllocate(StageConformance):
    kind = "allocate"
    family = "decoder"
    target = "memory"
    settings: ClassVar[Mapping[str, Any]] = {"options": {"tokens": 96}, "batch": {"size": 2}}
    values: ClassVar[Mapping[str, Any]] = {"student.options": {"bytes_a_layer": 9000}}
