"""Views of a field and their PSNR pass xarch's own kit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xarch.registry.loader import get_registry
from xarch.testing import DataConformance, MetricConformance
from xarch.testing.models import load_teacher


class TestViews(DataConformance):
    ref = "views:teacher"
    workers = False
    most = 16

    def context(self, folder: Path) -> Mapping[str, Any]:
        teacher = load_teacher(get_registry().create("family", "radiance-field").tiny_teacher(folder))
        return {"teacher": teacher, "facts": teacher.facts}


class TestFieldPSNR(MetricConformance):
    metric = "field-psnr"
    family = "radiance-field"
