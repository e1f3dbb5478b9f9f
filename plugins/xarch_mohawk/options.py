"""Options of the targets: size and form of the mixers, and the layers to replace."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from xarch_decoder.layer_choice import LayerOptions


class RecurrentOptions(LayerOptions):
    """Options that all targets of this plugin share."""

    conv: int = Field(4, ge=2, le=1024, description="taps of the short convolution")


class DM2Options(RecurrentOptions):
    """Options of the target ``dm2``."""

    state_size: int | None = Field(
        None, ge=1, le=1 << 16, description="state size N; default the width of an attention head"
    )
    rope: bool = Field(True, description="rotate C and B by position, as the teacher rotates queries and keys")


class Mamba1Options(RecurrentOptions):
    """Options of the target ``mamba1``."""

    state_size: int | None = Field(
        None,
        ge=1,
        le=1 << 16,
        description="states of a channel, and channels that share B and C; default 16, or the largest power of two "
        "that divides a head",
    )


class Mamba2Options(RecurrentOptions):
    """Options of the target ``mamba2``."""

    state_size: int | None = Field(
        None, ge=1, le=1 << 16, description="state size N; default the width of an attention head"
    )
    bias: bool = Field(True, description="biases of both projections; they let the gate start as a constant")


class GDNOptions(RecurrentOptions):
    """Options of the target ``gdn``."""

    state_size: int | None = Field(
        None, ge=1, le=1 << 16, description="width of queries and keys; default that of an attention head"
    )
    states: Literal["shared", "heads"] = Field(
        "shared", description="one state per key/value head, which its query heads share, or one per query head"
    )
    form: Literal["linear", "stock"] = Field(
        "linear",
        description="linear: no activation after the convolution, no norm, biases; stock: SiLU, a norm and no biases, "
        "as Gated DeltaNet has them, for exchange with Qwen3-Next",
    )
    rope: bool = Field(False, description="rotate queries and keys by position, as the teacher does")

    @model_validator(mode="after")
    def _stock_has_no_rotation(self) -> GDNOptions:
        if self.form == "stock" and self.rope:
            raise ValueError("the stock form does not rotate; drop `rope`, or set `form: linear`")
        return self
