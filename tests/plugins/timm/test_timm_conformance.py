"""The source and the target of timm pass xarch's own kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from xarch.testing import SourceConformance, TargetConformance
from xarch_image.testing import tiny_classifier


class TestTimmSource(SourceConformance):
    def make_ref(self, folder: Path) -> str:
        return tiny_classifier(folder)


class TestTimmTarget(TargetConformance):
    adapter = "timm"
    local = False
    options: ClassVar[dict[str, Any]] = {"model": "test_vit", "arguments": {"patch_size": 8, "depth": 2}, "size": 32}
