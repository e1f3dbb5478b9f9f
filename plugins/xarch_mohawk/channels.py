"""Which channels of an attention head the state vectors B and C carry over."""

from __future__ import annotations

from dataclasses import dataclass

from xarch import PlanError
from xarch.families.decoder.facts import DecoderFacts


@dataclass(frozen=True)
class StateChannels:
    """Channels of one head's B and C.

    Attributes:
        source: channel of q and k that each state channel is copied from, -1 for a channel of its own.
        frequencies: rotary inverse frequencies of the pairs (i, i + len(frequencies)), as in the decoder's facts.
    """

    source: tuple[int, ...]
    frequencies: tuple[float, ...]

    @property
    def size(self) -> int:
        """State size N."""
        return len(self.source)


def state_channels(facts: DecoderFacts, size: int | None) -> StateChannels:
    """The channels of a state of ``size``, by default the attention's head width.

    A larger state gets channels of its own behind the copied ones. A smaller one keeps the channels that turn slowest
    with distance, because those carry content: first unrotated ones, then pairs by rising frequency.

    Raises:
        PlanError: the size cannot hold whole rotary pairs.
    """
    width, pairs = facts.head_dim, len(facts.inverse_frequencies)
    size = width if size is None else size
    if size >= width:
        own = (-1,) * (size - width)
        return StateChannels((*range(width), *own), facts.inverse_frequencies)
    plain = list(range(2 * pairs, width))
    kept = min(len(plain), size)
    if (size - kept) % 2:
        kept -= 1
    if kept < 0:
        raise PlanError(
            f"student.options.state_size: {size} is odd, but every channel of a head of {width} is half of a rotary pair",
            f"use {size + 1}, or {width} for the teacher's own head width",
        )
    slowest = sorted(range(pairs), key=lambda i: facts.inverse_frequencies[i])[: (size - kept) // 2]
    slowest.sort()
    source = (*slowest, *(i + pairs for i in slowest), *plain[:kept])
    return StateChannels(source, tuple(facts.inverse_frequencies[i] for i in slowest))
