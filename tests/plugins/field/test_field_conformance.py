"""The family of radiance fields passes xarch's own kit."""

from __future__ import annotations

from xarch.testing import FamilyConformance


class TestRadianceField(FamilyConformance):
    family = "radiance-field"
