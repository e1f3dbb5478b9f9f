"""The target and its stage pass the kit that third-party plugins pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from xarch.testing import StageConformance, TargetConformance


class TestMemory(TargetConformance):
    adapter = "memory"
    options: ClassVar[Mapping[str, Any]] = {"layers": {"replace": [1]}, "bytes_a_layer": 1500}


class TestAllocate(StageConformance):
    kind = "allocate"
    family = "decoder"
    target = "memory"
    settings: ClassVar[Mapping[str, Any]] = {"options": {"tokens": 96}, "batch": {"size": 2}}
    values: ClassVar[Mapping[str, Any]] = {"student.options": {"bytes_a_layer": 1500}}
