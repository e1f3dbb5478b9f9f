"""The decoder family passes xarch's own kit."""

from __future__ import annotations

from xarch.testing import FamilyConformance


class TestDecoder(FamilyConformance):
    family = "decoder"
