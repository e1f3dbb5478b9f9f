"""The first-party target passes the kit that third-party targets pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from xarch.testing import TargetConformance


class TestDM2(TargetConformance):
    adapter = "dm2"
    options: ClassVar[Mapping[str, Any]] = {"layers": {"replace": [1]}}
