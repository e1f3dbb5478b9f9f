"""Probes of memory: what a text said some way back is asked again at its end.

Legend: B rows, L tokens, P scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ASKED, ANSWERED = 4, 4
"""Tokens of a question, and of its answer, which is scored."""
SPAN = ASKED + ANSWERED
KINDS = ("copy", "recall")


@dataclass(frozen=True)
class Planted:
    """Rows with probes.

    Attributes:
        ids_BL: the tokens.
        places: (kind, distance) -> positions [P] whose next token is part of the answer, the same in every row.
    """

    ids_BL: Tensor
    places: dict[tuple[str, int], Tensor]


def apart(probes: int) -> int:
    """Return the smallest difference of two distances at which ``probes`` of each kind do not overlap; the smallest
    distance is half of it."""
    return 2 * SPAN * len(KINDS) * probes


def fitting(distances: Sequence[int], length: int, probes: int) -> list[int]:
    """Return the distances, ascending, that fit rows of ``length`` tokens together."""
    found = sorted(set(distances))
    while found and found[-1] + SPAN * len(KINDS) * probes > length:
        found.pop()
    return found


def plant(ids_BL: Tensor, distances: Sequence[int], probes: int, generator: torch.Generator) -> Planted:
    """Return the rows with questions at their end, ``probes`` of each kind at every distance from what they ask for.

    ``copy`` repeats a passage of the text itself. ``recall`` repeats tokens drawn from all of the rows, in no order,
    put in place of the text: only the place that is asked for can tell the answer.

    Args:
        ids_BL: rows of text; they are not changed.
        distances: from :func:`fitting`, :func:`apart` from each other.
        generator: of the drawn tokens.
    """
    ids_BL = ids_BL.clone()
    rows, length = ids_BL.shape
    asked = [(kind, distance) for distance in distances for kind in KINDS for _ in range(probes)]
    begin = length - SPAN * len(asked)
    questions = [(begin + SPAN * number, *probe) for number, probe in enumerate(asked)]
    # All sources are written before any of them is asked for.
    for start, kind, distance in questions:
        if kind == "recall":
            drawn = torch.randint(ids_BL.numel(), (rows, SPAN), generator=generator)
            ids_BL[:, start - distance : start - distance + SPAN] = ids_BL.flatten()[drawn]
    places: dict[tuple[str, int], list[Tensor]] = {}
    for start, kind, distance in questions:
        ids_BL[:, start : start + SPAN] = ids_BL[:, start - distance : start - distance + SPAN].clone()
        places.setdefault((kind, distance), []).append(torch.arange(start + ASKED - 1, start + SPAN - 1))
    return Planted(ids_BL, {probe: torch.cat(found) for probe, found in places.items()})
