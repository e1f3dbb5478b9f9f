"""Where a model of text computes, for models that compute more at some tokens than at others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from xarch import Batch
from xarch.report import Block, Section, Shaded, Text

EFFORT = "effort"
"""Tap of such a model: the share of what it could compute [B, L]."""
ROWS, TOKENS = 3, 200
"""Rows that are kept for a person to look at, and tokens of each."""


def efforts(batch: Batch, effort_BL: Tensor, processor: Any, wanted: int) -> list[dict[str, Any]]:
    """Return JSON data of the first rows: the text of every token, and the share that ran there.

    Args:
        processor: tokenizer. wanted: rows at most.
    """
    kept = zip(batch["input_ids"][:wanted, :TOKENS].tolist(), effort_BL[:wanted, :TOKENS].tolist(), strict=True)
    return [
        {"effort": {"tokens": [str(processor.decode([token])) for token in row], "shares": shares}}
        for row, shares in kept
    ]


def shaded(entries: Sequence[Mapping[str, Any]]) -> Section | None:
    """Return held-out text with every token as dark as what ran there; None if no model told."""
    blocks: list[Block] = [Text("The darker a token of held-out text, the more of what could run ran there.")]
    for entry in entries:
        told = entry.get("effort")
        if not isinstance(told, dict) or not told.get("shares"):
            continue
        shares = [float(share) for share in told["shares"]]
        caption = f"{100 * sum(shares) / len(shares):.0f} % on average; {_extremes(told['tokens'], shares)}"
        blocks.append(Shaded(tuple(zip(map(str, told["tokens"]), shares, strict=True)), caption))
    return Section("Where the student computed", blocks) if len(blocks) > 1 else None


def _extremes(tokens: Sequence[str], shares: Sequence[float]) -> str:
    order = sorted(range(len(shares)), key=shares.__getitem__)
    least, most = (f"{100 * shares[i]:.0f} % at {tokens[i]!r}" for i in (order[0], order[-1]))
    return f"least {least}, most {most}"
