"""Which of the teacher's layers a student keeps, and which of its tensors each of the student's is a copy of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from xarch import Options, PlanError
from xarch_speech.facts import SpeechFacts


class SpeechOptions(Options):
    """Which of the teacher's layers the student keeps."""

    encoder: int | None = Field(None, ge=1, le=2048, description="encoder layers; default: all")
    decoder: int | None = Field(None, ge=1, le=2048, description="decoder layers; default: half of the teacher's")
    keep: Literal["spread", "first", "last"] = Field(
        "spread", description="spread: evenly spaced, the first and the last included; or the first, or the last layers"
    )


@dataclass(frozen=True)
class Layout:
    """The teacher's layer behind each layer of encoder and decoder."""

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]


def layout_of(facts: SpeechFacts, options: SpeechOptions) -> Layout:
    """Return the layers that the options keep.

    Raises:
        PlanError: the teacher has fewer.
    """
    encoder = facts.encoder if options.encoder is None else options.encoder
    decoder = max(1, facts.decoder // 2) if options.decoder is None else options.decoder
    for what, count, total in (("encoder", encoder, facts.encoder), ("decoder", decoder, facts.decoder)):
        if count > total:
            raise PlanError(
                f"student.options.{what}: {count} layers of a teacher that has {total}",
                f"--set student.options.{what}={total}",
            )
    return Layout(_kept(facts.encoder, encoder, options.keep), _kept(facts.decoder, decoder, options.keep))


def _kept(total: int, count: int, keep: str) -> tuple[int, ...]:
    if keep == "first":
        return tuple(range(count))
    if keep == "last":
        return tuple(range(total - count, total))
    if count == 1:
        return (0,)
    return tuple(round(k * (total - 1) / (count - 1)) for k in range(count))


def cut(facts: SpeechFacts, layout: Layout) -> SpeechFacts:
    """Return the facts of a model with these layers alone."""
    return replace(facts, encoder=len(layout.encoder), decoder=len(layout.decoder))


def teacher_name(name: str, layout: Layout) -> str:
    """Return the teacher's tensor behind one of the student's."""
    places: dict[str, Sequence[int]] = {"encoder": layout.encoder, "decoder": layout.decoder}
    side, _, rest = name.partition(".")
    if side not in places:
        return name
    number, _, leaf = rest.partition(".")
    return f"{side}.{places[side][int(number)]}.{leaf}"
