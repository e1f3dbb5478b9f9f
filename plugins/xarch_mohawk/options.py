"""Options of the DM2 target: mixer size and the layers to replace."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from xarch import Options
from xarch_decoder.layer_choice import Layers


class DM2Options(Options):
    """Options of the target ``dm2``."""

    layers: Layers = Field(Layers(), description="`all`, or one of replace, keep, every, choose")
    state_size: int | None = Field(
        None, ge=1, le=1 << 16, description="state size N; default the width of an attention head"
    )
    conv: int = Field(4, ge=2, le=1024, description="taps of the convolution over x, B and C")
    rope: bool = Field(True, description="rotate C and B by position, as the teacher rotates queries and keys")

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, data: Any) -> Any:
        return Layers.model_validate(data)
