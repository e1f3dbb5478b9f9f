"""What an image classifier is, as data: enough for a student of another architecture, and to name its taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from xarch import Size, Tap, UsageError, typed
from xarch_image.taps import image_taps

Pixels = Annotated[int, Field(ge=1, le=1 << 14)]
Classes = Annotated[int, Field(ge=1, le=1 << 20)]
Channels = Annotated[int, Field(ge=1, le=64)]
Share = Annotated[float, Field(ge=-10, le=10)]
Spread = Annotated[float, Field(gt=0, le=1e3)]
Prefix = Annotated[int, Field(ge=0, le=64)]


@dataclass(frozen=True)
class Feature:
    """Form of the output of one tapped stage."""

    channels: Size
    height: Pixels
    width: Pixels


@dataclass(frozen=True)
class ImageFacts:
    """An image classifier without its weights.

    Attributes:
        arch: name of its architecture in the library that builds it.
        classes: number of classes.
        channels, height, width: images it reads; others are resized and their channels adapted.
        mean, std: normalisation per channel, of images in 0 to 1.
        interpolation: how images of another size are resized.
        features: form of each tapped stage, from early to late.
        kind: "token" for models with attention or token mixing, else "conv".
        prefix_tokens: class and register tokens before the grid.
        pooled: width of the classifier's input.
        macs: multiply-adds per image.
        options: options of the architecture, plain data.
        class_names: name of each class, if known.
        heads: names of its classifiers, where it has several, whose mean gives the logits.
    """

    arch: str
    classes: Classes
    channels: Channels
    height: Pixels
    width: Pixels
    features: Annotated[tuple[Feature, ...], Field(max_length=16)]
    pooled: Size
    mean: Annotated[tuple[Share, ...], Field(max_length=64)] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[Spread, ...], Field(max_length=64)] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    kind: Literal["conv", "token"] = "conv"
    prefix_tokens: Prefix = 0
    macs: Annotated[float, Field(ge=0, le=1e18)] = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    class_names: Annotated[tuple[str, ...], Field(max_length=1 << 20)] = ()
    heads: Annotated[tuple[str, ...], Field(max_length=16)] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without loss."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImageFacts:
        """Invert :meth:`to_json`.

        Raises:
            UsageError: unknown keys, other types, or numbers that are out of bounds or contradict one another.
        """
        facts = typed(cls, data, "image facts")
        if not len(facts.mean) == len(facts.std) == facts.channels:
            raise UsageError(
                f"image facts: {len(facts.mean)} means and {len(facts.std)} deviations for {facts.channels} channels"
            )
        if facts.class_names and len(facts.class_names) != facts.classes:
            raise UsageError(f"image facts: {len(facts.class_names)} class names for {facts.classes} classes")
        return facts

    def taps(self) -> dict[str, Tap]:
        """Return the taps of a model with these facts, by name."""
        return image_taps(self)

    def normalised_by(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> ImageFacts:
        """Return these facts with another normalisation, one value or one per channel; None keeps what is there.

        Raises:
            UsageError: there are neither one nor as many values as channels, or a deviation is not positive.
        """

        def each(given: Sequence[float] | None, own: tuple[float, ...]) -> tuple[float, ...]:
            return own if given is None else tuple(given) * (self.channels if len(given) == 1 else 1)

        changed = replace(self, mean=each(mean, self.mean), std=each(std, self.std))
        return ImageFacts.from_json(changed.to_json())

    def tiny(self) -> ImageFacts:
        """Return the facts unchanged: an architecture by name has no shorter form."""
        return self

    def work(self, sample: Mapping[str, Any]) -> float:
        """Return multiply-adds per image."""
        return max(self.macs, 1.0)
