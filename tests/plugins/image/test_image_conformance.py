"""The family of image classifiers passes xarch's own kit."""

from __future__ import annotations

from xarch.testing import FamilyConformance, MetricConformance


class TestImage(FamilyConformance):
    family = "image"


class TestTop1(MetricConformance):
    metric = "top1"
    family = "image"
    needs_teacher = False
