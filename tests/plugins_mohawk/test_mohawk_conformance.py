"""The first-party target passes the kit that third-party targets pass."""

from __future__ import annotations

from xarch.testing import TargetConformance


class TestDM2(TargetConformance):
    adapter = "dm2"
    options = {"layers": {"replace": [1]}}
