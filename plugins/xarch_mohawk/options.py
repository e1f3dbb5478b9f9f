"""Options of the DM2 target: mixer size and the layers to replace."""

from __future__ import annotations

from pydantic import Field

from xarch_decoder.layer_choice import LayerOptions


class DM2Options(LayerOptions):
    """Options of the target ``dm2``."""

    state_size: int | None = Field(
        None, ge=1, le=1 << 16, description="state size N; default the width of an attention head"
    )
    conv: int = Field(4, ge=2, le=1024, description="taps of the convolution over x, B and C")
    rope: bool = Field(True, description="rotate C and B by position, as the teacher rotates queries and keys")
