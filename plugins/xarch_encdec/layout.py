"""From options and a teacher to the layers of encoder and decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from xarch import PlanError
from xarch_decoder.facts import DecoderFacts
from xarch_encdec.facts import EncDecFacts
from xarch_encdec.options import EncDecOptions
from xarch_encdec.predict import best


@dataclass(frozen=True)
class Layout:
    """The teacher's layer behind each layer of the encoder and of the decoder."""

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]

    @property
    def twins(self) -> tuple[int | None, ...]:
        """Return encoder layer -> the decoder layer made of the same layer, None if there is none."""
        return tuple(self.decoder.index(mine) if mine in self.decoder else None for mine in self.encoder)

    @property
    def levels(self) -> tuple[int, ...]:
        """Return decoder layer -> the first encoder layer made of the teacher's same layer or a later one, whose input
        stands for what the decoder layer read in the teacher; the encoder's depth if there is none."""
        return tuple(
            next((k for k, mine in enumerate(self.encoder) if mine >= theirs), len(self.encoder))
            for theirs in self.decoder
        )


def layout_of(facts: DecoderFacts, options: EncDecOptions, decisions: Mapping[str, Any] | None = None) -> Layout:
    """Return the layers that a plan takes.

    Args:
        decisions: of a stage: the layers of the decoder; until then ``drop`` has all of them.

    Raises:
        PlanError: the teacher has too few layers or channels, or no split fits the budget.
    """
    every = tuple(range(facts.layers))
    encoder, decoder = counts_of(facts, options)
    if (options.encoder_width or 0) > facts.width:
        raise PlanError(
            f"student.options.encoder_width: {options.encoder_width} channels of a teacher that has {facts.width}",
            f"--set student.options.encoder_width={facts.width}",
        )
    if options.plan == "drop":
        return Layout(every[:encoder], tuple((decisions or {}).get("decoder", every)))
    if options.plan == "stride":
        return Layout(_spread(facts.layers, encoder), _spread(facts.layers, decoder))
    return Layout(every[:encoder], every[-decoder:])


def counts_of(facts: DecoderFacts, options: EncDecOptions) -> tuple[int, int]:
    """Return the number of encoder and decoder layers of a finished student.

    Raises:
        PlanError: as :func:`layout_of`.
    """
    total = facts.layers
    if options.plan == "copy":
        return total, total
    if options.plan == "budget":
        found = best(
            facts,
            options.cross,
            prompt=options.prompt,
            answer=options.answer,
            parameters=options.parameters,
            share=options.share,
            width=options.encoder_width,
        )
        if found is None:
            raise PlanError(
                f"student.options.parameters: not one layer of each fits {options.parameters:g} times the teacher's",
                "--set student.options.parameters=1.0",
            )
        return found.encoder, found.decoder
    encoder, decoder = options.encoder, options.decoder
    if encoder is None:
        encoder = max(1, round(2 * total / 3) if decoder is None else total - decoder)
    if decoder is None:
        decoder = max(1, total - encoder)
    for what, count in (("encoder", encoder), ("decoder", decoder)):
        if count > total:
            raise PlanError(
                f"student.options.{what}: {count} layers of a teacher that has {total}",
                f"--set student.options.{what}={total}",
            )
    return encoder, decoder


def _spread(total: int, count: int) -> tuple[int, ...]:
    """Return evenly spaced layers, the last one included."""
    return tuple((k + 1) * total // count - 1 for k in range(count))


def facts_of(facts: DecoderFacts, options: EncDecOptions, layout: Layout) -> EncDecFacts:
    """Return the facts of the student."""
    windows = facts.windows
    layer = replace(
        facts,
        layers=len(layout.decoder),
        windows=tuple(windows[i] for i in layout.decoder) if windows else (),
        tied=facts.tied if options.tied is None else options.tied,
    )
    return EncDecFacts(
        layer=layer,
        encoder=len(layout.encoder),
        decoder=len(layout.decoder),
        cross=options.cross,
        norm=options.norm,
        levels=layout.levels,
        encoder_windows=tuple(windows[i] for i in layout.encoder) if windows else (),
        twins=layout.twins if options.share else (),
        encoder_width=options.encoder_width if options.encoder_width != facts.width else None,
    )
