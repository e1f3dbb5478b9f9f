"""Options of the target ``encdec``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from xarch import Options
from xarch_encdec.facts import Cross, Norm

MOST = 1 << 20


class EncDecOptions(Options):
    """Which of the teacher's layers become encoder and decoder, and how the decoder reads the source."""

    plan: Literal["split", "stride", "drop", "copy", "budget"] = Field(
        "split",
        description="split: first layers and last layers; stride: evenly spaced layers for both; drop: first layers, "
        "and those that a stage of kind drop_layers keeps in the decoder; copy: all layers for both; budget: the "
        "split whose prompt and answer take least time",
    )
    encoder: int | None = Field(None, ge=1, le=2048, description="encoder layers; default: two thirds of the teacher's")
    decoder: int | None = Field(None, ge=1, le=2048, description="decoder layers; default: the rest")
    cross: Cross = Field(
        "merged",
        description="merged: one softmax over source and own tokens, without new weights; self_copy: an attention of "
        "its own, copied from self-attention; random: likewise with random weights",
    )
    share: bool = Field(
        False, description="encoder layers have the weights of the decoder layers made of the same layer of the teacher"
    )
    encoder_width: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="width of the encoder, whose layers are those channels of the teacher's; with a cross-attention of "
        "its own, which reads the encoder's last output",
    )
    norm: Norm = Field("pre", description="dual: what attention and MLP give is normed too")
    tied: bool | None = Field(None, description="whether the head is the embedding; default: as in the teacher")
    mask: Literal["causal", "full"] = Field("causal", description="what an encoder token sees before training")
    memory: Literal["layers", "last"] = Field(
        "layers",
        description="what decoder layers read before training: the input of the encoder layer that stands for their "
        "own, which is what they read in the teacher, or the encoder's last output",
    )
    prompt: int = Field(
        512, ge=1, le=MOST, description="prompt length in tokens that the plan predicts and chooses for"
    )
    answer: int = Field(64, ge=1, le=MOST, description="answer length in tokens that the plan predicts and chooses for")
    parameters: float = Field(1.0, gt=0, le=4, description="budget: parameters, as a share of the teacher's")

    @model_validator(mode="after")
    def _counts_belong_to_a_plan(self) -> EncDecOptions:
        if self.plan in ("copy", "budget") and (self.encoder is not None or self.decoder is not None):
            raise ValueError(
                f"plan {self.plan!r} decides how many layers there are, but encoder is {self.encoder} and decoder "
                f"{self.decoder}; leave them out, or use plan `split`"
            )
        if self.encoder_width is not None and (self.cross == "merged" or self.share or self.memory != "last"):
            raise ValueError(
                f"encoder_width {self.encoder_width} needs cross `self_copy` or `random`, memory `last` and share "
                f"false, not {self.cross!r}, {self.memory!r} and {str(self.share).lower()}"
            )
        return self

    def tiny(self) -> EncDecOptions:
        """Return options for a teacher cut to two layers."""
        plan = "split" if self.plan == "budget" else self.plan
        return self.model_copy(update={"plan": plan, "encoder": None, "decoder": None})
