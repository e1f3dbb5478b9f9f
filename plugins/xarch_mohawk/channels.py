"""Selection of the channels of an attention head that the state vectors B and C inherit."""

from __future__ import annotations

from dataclasses import dataclass

from xarch import PlanError
from xarch_decoder.facts import DecoderFacts


@dataclass(frozen=True, slots=True)
class StateChannels:
    """Channels of one head's B and C.

    Attributes:
        source: channel of q and k that each state channel is copied from.
        own: number of additional channels after them without a counterpart in the teacher.
        frequencies: rotary inverse frequencies of the pairs (i, i + len(frequencies)), as in the decoder's facts.
    """

    source: tuple[int, ...]
    own: int
    frequencies: tuple[float, ...]

    @property
    def size(self) -> int:
        """Return the state size N."""
        return len(self.source) + self.own


def state_channels(facts: DecoderFacts, size: int | None) -> StateChannels:
    """Select the channels of a state of ``size``, by default the attention's head width.

    A smaller state keeps the channels that rotate slowest with distance, because those carry content: first the ones
    that do not rotate at all, then rotary pairs in order of increasing frequency.

    Raises:
        PlanError: the size cannot hold whole rotary pairs.
    """
    width, pairs = facts.head_dim, len(facts.inverse_frequencies)
    size = width if size is None else size
    if size >= width:
        return StateChannels(tuple(range(width)), size - width, facts.inverse_frequencies)
    plain = list(range(2 * pairs, width))
    kept = min(len(plain), size)
    kept -= (size - kept) % 2
    if kept < 0:
        raise PlanError(
            f"student.options.state_size: {size} is odd, but all {width} channels of a head are halves of rotary pairs",
            f"use {size + 1}, or {width} for the teacher's own head width",
        )
    slowest = sorted(range(pairs), key=lambda i: facts.inverse_frequencies[i])[: (size - kept) // 2]
    slowest.sort()
    source = (*slowest, *(i + pairs for i in slowest), *plain[:kept])
    return StateChannels(source, 0, tuple(facts.inverse_frequencies[i] for i in slowest))
