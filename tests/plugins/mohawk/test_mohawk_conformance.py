"""The first-party targets pass the kit that third-party targets pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xarch.testing import TargetConformance


class WholePathInCI(TargetConformance):
    """A mark on the kit's own function would be on that of every target."""

    options: ClassVar[Mapping[str, Any]] = {"layers": {"replace": [1]}}

    @pytest.mark.slow
    def test_tiny_conversion_to_verified_onnx(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().test_tiny_conversion_to_verified_onnx(tmp_path, monkeypatch)


class TestDM2(WholePathInCI):
    adapter = "dm2"


class TestGDN(WholePathInCI):
    adapter = "gdn"


class TestMamba1(WholePathInCI):
    adapter = "mamba1"


class TestMamba2(WholePathInCI):
    adapter = "mamba2"
