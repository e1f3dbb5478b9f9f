"""Options of a representation: a preset and the user's overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le
from pydantic import Field, field_validator, model_validator

from xarch import Options

Samples = Annotated[int, Ge(2), Le(1 << 14)]
Resolution = Samples | tuple[Samples, Samples, Samples]
"""Samples per axis, or along x, y and z."""


def per_axis(resolution: Resolution) -> tuple[int, int, int]:
    """Return samples along x, y and z."""
    return (resolution, resolution, resolution) if isinstance(resolution, int) else resolution


class Preset(Options):
    """Base of options whose unset fields come from the preset.

    Class attributes:
        PRESETS: preset -> field -> value; "small" for minutes on a CPU, "paper" as published, "npu-..." for
            accelerators.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]]

    preset: str = Field("small", description="`small`: minutes on a CPU; `paper`: as published; npu-mlp, npu-vm")

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in cls.PRESETS:
            raise ValueError(f"unknown preset, expected one of {', '.join(cls.PRESETS)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {**cls.PRESETS.get(str(data.get("preset", "small")), {}), **data}
