"""Options of ``images:`` data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from xarch import Options

MAX_SIZE = 4096


class Augment(Options):
    """Augmentation of training pictures."""

    crop: Literal["auto", "none", "pad", "resized"] = Field(
        "auto",
        description="`pad`: a random place in the padded picture; `resized`: a random part, enlarged; `auto`: `pad` "
        "for pictures of the model's own size, else `resized`",
    )
    pad: int = Field(2, ge=0, le=256, description="pixels of black added on each side by `pad`")
    scale: tuple[float, float] = Field((0.25, 1.0), description="least and largest share of the area for `resized`")
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring left and right")
    colour: float = Field(0.0, ge=0, le=1, description="strength of random brightness, contrast and saturation")
    auto: str | None = Field(None, description="policy of timm, e.g. rand-m9-mstd0.5-inc1 (RandAugment)")
    erase: float = Field(0.0, ge=0, le=1, description="probability of erasing a random box")
    repeats: int = Field(
        1, ge=1, le=64, description="draws of every picture within a batch, each augmented anew (repeated augmentation)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)}: expected 0 < least <= largest <= 1")
        return self


class Tail(Options):
    """Long-tailed training data: int(largest * factor ** (i / (classes - 1))) pictures of class i."""

    factor: float = Field(gt=1, description="pictures of the largest class over those of the smallest")
    largest: int | None = Field(None, ge=1, description="pictures of the largest class; default: what every class has")
    shape: Literal["exponential", "step"] = Field("exponential", description="`step`: half the classes are small")
    order: int | None = Field(None, ge=0, description="seed of a permutation of the classes; default: as they are")


class PictureOptions(Options):
    """Options for reading, splitting and transforming pictures."""

    size: int | None = Field(
        None, ge=1, le=MAX_SIZE, description="height and width; default: that of small pictures, the teacher's, or 224"
    )
    channels: Literal[1, 3] | None = Field(None, description="default: the teacher's, else those of the pictures")
    labels: bool = Field(True, description="false: read no labels")
    image_column: str | None = Field(None, description="Parquet column of the pictures; default: the only such one")
    label_column: str | None = Field(
        None, description="Parquet column of the labels, integers or words; default: the only such one"
    )
    augment: Augment = Field(default_factory=Augment, description="augmentation of training pictures")
    teacher_view: Literal["same", "other", "plain"] = Field(
        "same",
        description="what the teacher sees: the same augmented picture, another draw of it, or the picture as in "
        "evaluation",
    )
    ema_view: Literal["same", "other", "plain"] = Field(
        "same", description="what the student's moving average (`ema:TAP`) sees"
    )
    teacher_size: int | None = Field(None, ge=1, le=MAX_SIZE, description="height and width for the teacher, if other")
    crop_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the shorter side kept in evaluation; default: 0.875 with `resized`, or 1",
    )
    validation: float = Field(0.05, ge=0, lt=1, description="share of pictures for decisions during training")
    calibration: float = Field(0.02, ge=0, lt=1, description="share of pictures for 8-bit ranges and tables")
    heldout: float = Field(0.15, ge=0, lt=1, description="share for final figures, if the data have no test part")
    limit: int | None = Field(None, ge=1, description="training pictures to use, as many of each class as possible")
    labelled: int | None = Field(
        None,
        ge=1,
        description="training pictures that keep their label; `labelled` [B] is 0 for others, whose label is 0",
    )
    noise: float = Field(0.0, ge=0, le=1, description="share of training labels replaced by a random class")
    tail: Tail | None = Field(None, description="make the training data long-tailed")
    subset: int = Field(0, ge=0, description="seed of what `limit`, `labelled`, `noise` and `tail` choose")
    skip_limit: float = Field(0.2, ge=0, le=1, description="share of unusable pictures above which reading stops")

    @model_validator(mode="after")
    def _room_for_training(self) -> PictureOptions:
        if self.validation + self.heldout + self.calibration >= 1:
            raise ValueError(
                f"validation {self.validation}, heldout {self.heldout} and calibration {self.calibration} "
                "leave nothing for training"
            )
        if not self.labels and (self.tail or self.labelled or self.noise):
            raise ValueError("tail, labelled and noise need labels")
        return self
