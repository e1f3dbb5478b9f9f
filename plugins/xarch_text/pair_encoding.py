"""Pairs as tokens: a prompt that the encoder reads, and an answer that the decoder continues it with.

An encoder-decoder reads the prompt without its last token; its decoder begins with that token. So the source tokens
followed by the decoder's tokens are the very row that a decoder reads, and position t of the decoder predicts what the
decoder predicts at the same token.

Legend: B pairs, S source tokens, T decoder tokens, L = S + T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xarch import Batch, UsageError
from xarch_text.encoding import Encoder
from xarch_text.library import Piece
from xarch_text.pair_library import Pair
from xarch_text.tally import Tally

PAD = 0
"""Fills rows. Its id may be a token's: what counts is said by masks, which are made from lengths."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pair as token ids.

    Attributes:
        source: the prompt without its last token, at least one.
        decoder: the prompt's last token, and the answer.
        theirs: the pair as another teacher's tokenizer spells it, and the positions where both have read the same of
            the answer; None without one.
    """

    source: list[int]
    decoder: list[int]
    theirs: Other | None = None


@dataclass(frozen=True, slots=True)
class Other:
    """A pair as another teacher reads it.

    Attributes:
        source, decoder: as of :class:`Tokens`.
        pairs: how many tokens of the answer each has read where both have read the same, the decoder's first.
    """

    source: list[int]
    decoder: list[int]
    pairs: list[tuple[int, int]]


class PairEncoder:
    """Encodes pairs.

    Args:
        encoder: of texts.
        prompt: the prompt, in which ``{source}`` stands for the source. Special tokens are parsed in it, and never in
            sources and targets.
        source, target: most tokens of a prompt and of an answer; a longer source loses its end, not what follows it in
            the prompt, and a longer answer loses its end.
        end: token at the end of an answer where the encoder has none, or None.

    Raises:
        UsageError: the prompt alone has as many tokens as a prompt may have.
    """

    def __init__(self, encoder: Encoder, prompt: str, *, source: int, target: int, end: int | None) -> None:
        self.encoder, self.most_target = encoder, target
        self.end = [] if end is None or encoder.after else [end]
        before, _, after = prompt.partition("{source}")
        self.before, self.after = [*encoder.before, *encoder.template(before)], encoder.template(after)
        self.room = source - len(self.before) - len(self.after)
        if self.room < 1:
            raise UsageError(
                f"data.options.prompt has {source - self.room} tokens without the source, and prompts at most {source}",
                f"`--set data.sample.source={source - self.room + 128}`",
            )

    def __call__(self, pair: Pair, tally: Tally) -> Tokens | None:
        """Return the tokens of a pair; None if its prompt has fewer than two, which ``tally`` counts."""
        source = self.encoder(Piece(pair.document, pair.text, False, False))
        answer = self.encoder(Piece(pair.document, pair.target, False, True)) + self.end
        if len(source) > self.room:
            tally.add("cut_sources", 1)
        if len(answer) > self.most_target:
            tally.add("cut_targets", 1)
        prompt = [*self.before, *source[: self.room], *self.after]
        if len(prompt) < 2 or not answer:
            tally.add("left_out_empty", 1)
            return None
        return Tokens(prompt[:-1], [prompt[-1], *answer[: self.most_target]])


def pair_sizes(source: int, target: int) -> dict[str, int]:
    """Return the sizes of a batch of pairs of so many tokens: the decoder begins with the source's last one."""
    return {"S": source - 1, "T": target + 1, "L": source + target}


def to_batch(rows: Sequence[Tokens], units: int, *, joined: bool) -> Batch:
    """Return a batch padded to its longest pair.

    ``input_ids`` and ``attention_mask`` [B, S], padded on the right; ``decoder_input_ids`` [B, T], padded on the right,
    and ``answer_mask`` [B, T], 1 where the next token is one of the answer. ``joined`` adds what a decoder reads:
    ``input_ids@teacher`` [B, L], sources padded on the left and decoder tokens on the right, so that all rows have the
    same boundary, and ``segment_ids@teacher`` [B, L], which tell pads from text.
    """
    sources, decoders = [r.source for r in rows], [r.decoder for r in rows]
    width_S, width_T = max(map(len, sources)), max(map(len, decoders))
    source_B = torch.tensor([len(ids) for ids in sources])
    decoder_B = torch.tensor([len(ids) for ids in decoders])
    decoder_BT = _padded(decoders, width_T)
    tensors = {
        "input_ids": _padded(sources, width_S),
        "attention_mask": (torch.arange(width_S) < source_B[:, None]).long(),
        "decoder_input_ids": decoder_BT,
        "answer_mask": (torch.arange(width_T) < decoder_B[:, None] - 1).float(),
    }
    if joined:
        tensors["input_ids@teacher"], tensors["segment_ids@teacher"] = joined_rows(sources, decoders)
    return Batch(tensors, units)


def joined_rows(sources: Sequence[list[int]], decoders: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the rows that a decoder reads and their segments, both [B, L]; the decoder tokens of all begin after as
    many places as the longest source has tokens."""
    width_S, width_T = max(map(len, sources)), max(map(len, decoders))
    source_B1 = torch.tensor([[len(ids)] for ids in sources])
    decoder_B1 = torch.tensor([[len(ids)] for ids in decoders])
    left_BS = torch.tensor([[PAD] * (width_S - len(ids)) + ids for ids in sources])
    place_L = torch.arange(width_S + width_T)
    segments_BL = (place_L >= width_S - source_B1).long() + (place_L >= width_S + decoder_B1).long()
    return torch.cat([left_BS, _padded(decoders, width_T)], 1), segments_BL


def _padded(rows: Sequence[list[int]], width: int) -> Tensor:
    return torch.tensor([ids + [PAD] * (width - len(ids)) for ids in rows], dtype=torch.int64)
