"""The first-party targets pass the kit that third-party targets pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xarch.testing import TargetConformance


class TestDM2(TargetConformance):
    adapter = "dm2"
    options: ClassVar[Mapping[str, Any]] = {"layers": {"replace": [1]}}


class OthersConformance(TargetConformance):
    options: ClassVar[Mapping[str, Any]] = {"layers": {"replace": [1]}}

    @pytest.mark.slow
    def test_tiny_conversion_to_verified_onnx(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().test_tiny_conversion_to_verified_onnx(tmp_path, monkeypatch)


class TestGDN(OthersConformance):
    adapter = "gdn"


class TestMamba1(OthersConformance):
    adapter = "mamba1"


class TestMamba2(OthersConformance):
    adapter = "mamba2"
