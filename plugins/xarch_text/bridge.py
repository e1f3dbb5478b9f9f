"""Alignment of two tokenizers: positions where both have read the same text, and tokens that stand for the same text.

Legend: B batch, A pairs of positions, V vocabulary of the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xarch import Batch, TensorInfo, UsageError
from xarch_text.pair_encoding import Other, PairEncoder, Tokens, joined_rows
from xarch_text.pair_library import Pair
from xarch_text.tally import Tally

OWN, THEIRS, MASK, WORDS = "bridge_own", "bridge_theirs", "bridge_mask", "bridge_words"
"""Batch keys: positions of the student's and of the other teacher's predictions [B, A], which of them count, and the
other teacher's id of each of the student's tokens [B, V]."""

SPACE = "▁"
"""A space in tokens of SentencePiece; a token decoded by itself loses it."""


@dataclass(frozen=True, slots=True)
class Spelled:
    """A text as tokens, with the character that each ends at."""

    ids: list[int]
    ends: list[int]


def spelled(tokenizer: Any, text: str) -> Spelled:
    """Return the tokens of a text.

    Raises:
        UsageError: the tokenizer does not say where its tokens lie.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"the tokenizer {type(tokenizer).__name__} does not say where its tokens lie in a text",
            "name a teacher that has a tokenizer.json",
        )
    given = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    return Spelled(list(given["input_ids"]), [int(end) for _, end in given["offset_mapping"]])


def aligned(own: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs of counts of tokens after which two tokenizations end at the same character, (0, 0) first.

    Of tokens that end at the same character, which are parts of one, the last counts: before it the character is not
    complete.
    """
    place = {0: 0} | {end: count for count, end in enumerate(theirs, 1)}
    mine = {0: 0} | {end: count for count, end in enumerate(own, 1)}
    return [(count, place[end]) for end, count in mine.items() if end in place]


def common_words(own: Any, theirs: Any, size: int) -> Tensor:
    """Return the other tokenizer's id of each of the own tokens [V], −1 where it has none for the same text; the tokens
    that end a text are the same.

    Args:
        size: rows of the student's vocabulary.

    Raises:
        UsageError: the vocabularies have nothing in common.
    """
    known = {text: token for token, text in _texts(theirs).items()}
    words_V = torch.full((size,), -1, dtype=torch.int64)
    for token, text in _texts(own).items():
        if token < size and text in known:
            words_V[token] = known[text]
    ends = own.eos_token_id, theirs.eos_token_id
    if None not in ends and ends[0] < size:
        words_V[ends[0]] = ends[1]
    if not bool((words_V >= 0).any()):
        raise UsageError("the two vocabularies have no token in common", "use the objective `uld` alone")
    return words_V


def _texts(tokenizer: Any) -> dict[int, str]:
    """Return token -> the text it stands for; special tokens stand for none, nor do parts of characters."""
    special, found = set(tokenizer.all_special_ids), {}
    vocab: Mapping[str, int] = tokenizer.get_vocab()
    pieces = any(SPACE in token for token in vocab)
    for token, number in vocab.items():
        if number in special:
            continue
        text = token.replace(SPACE, " ") if pieces else str(tokenizer.convert_tokens_to_string([token]))
        if text and "\N{REPLACEMENT CHARACTER}" not in text:
            found[number] = text
    return found


class BridgedEncoder:
    """Encodes pairs for two tokenizers, the student's and that of another teacher.

    Args:
        own, theirs: encoders of both.
        name: of that teacher.
        vocab: rows of the student's vocabulary; by default those of its tokenizer.

    Raises:
        UsageError: one of the two has no tokenizer, or they cannot be aligned.
    """

    def __init__(self, own: PairEncoder, theirs: PairEncoder, name: str, vocab: int | None) -> None:
        self.own, self.theirs, self.name = own, theirs, name
        mine, other = own.encoder.tokenizer, theirs.encoder.tokenizer
        if mine is None or other is None:
            raise UsageError("data.options.bridge: both sides need tokenizers", "leave out data.options.tokenizer")
        self.words_V = common_words(mine, other, vocab or len(mine))

    def __call__(self, pair: Pair, tally: Tally) -> Tokens | None:
        """Return the tokens of a pair; None if its prompt has too few on one of the sides."""
        own, theirs = self.own(pair, tally), self.theirs(pair, Tally(1.0))
        if own is None or theirs is None:
            return None
        ends = [spelled(side.encoder.tokenizer, pair.target).ends for side in (self.own, self.theirs)]
        # The last token of a row predicts nothing; what was cut off was never read.
        most = len(own.decoder) - 1, len(theirs.decoder) - 1
        pairs = [(t, k) for t, k in aligned(*ends) if t < most[0] and k < most[1]]
        return replace(own, theirs=Other(theirs.source, theirs.decoder, pairs))

    def bridged(self, batch: Batch, rows: Sequence[Tokens]) -> Batch:
        """Return a batch with what the other teacher reads, and where the two meet."""
        others = [row.theirs for row in rows if row.theirs is not None]
        ids_BL, segments_BL = joined_rows([o.source for o in others], [o.decoder for o in others])
        before, width = max(len(o.source) for o in others), max(len(o.pairs) for o in others)
        places = torch.tensor([o.pairs + [(0, 0)] * (width - len(o.pairs)) for o in others], dtype=torch.int64)
        counts_B1 = torch.tensor([[len(o.pairs)] for o in others])
        made = {
            f"input_ids@{self.name}": ids_BL,
            f"segment_ids@{self.name}": segments_BL,
            OWN: places[..., 0],
            THEIRS: places[..., 1] + before,
            MASK: (torch.arange(width) < counts_B1).float(),
            WORDS: self.words_V.expand(len(others), -1),
        }
        return batch.replace(**made)


def bridge_tensors(name: str) -> dict[str, TensorInfo]:
    """Return the declarations of what :meth:`BridgedEncoder.bridged` adds."""
    return {
        f"input_ids@{name}": TensorInfo("BL"),
        f"segment_ids@{name}": TensorInfo("BL"),
        OWN: TensorInfo("BA", dtype="int64"),
        THEIRS: TensorInfo("BA", dtype="int64"),
        MASK: TensorInfo("BA", dtype="float32"),
        WORDS: TensorInfo("BV", dtype="int64"),
    }
