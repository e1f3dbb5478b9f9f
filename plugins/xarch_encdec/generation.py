"""Answers, greedily: of an encoder-decoder with its caches, and of a decoder for comparison.

Legend: B batch, S source tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from xarch import Batch, PlanError, TapModel, Teacher, UsageError
from xarch_decoder.controls import bounded_teacher
from xarch_decoder.generation import continue_greedily
from xarch_encdec.controls import CutTeacher
from xarch_encdec.exported import ExportedAnswers
from xarch_encdec.model.network import EncDecModel
from xarch_encdec.running import until
from xarch_encdec.student import Running
from xarch_encdec.teacher import AnswerView

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Ends a decoded text whose last character lacks bytes that later tokens bring."""


def written(model: EncDecModel, ids_BS: Tensor, mask_BS: Tensor, start_B: Tensor, tokens: int) -> Iterator[Tensor]:
    """Yield the most likely next token [B] of every answer, ``tokens`` times.

    Args:
        ids_BS, mask_BS: sources.
        start_B: the decoder's first token.
    """
    source, past, token_B = model.encode(ids_BS, mask_BS, model.opened()), None, start_B
    for _ in range(tokens):
        final_B1D, past = model.decode(token_B[:, None], mask_BS, source, past)
        token_B = model.logits(final_B1D).of(final_B1D[:, -1]).argmax(-1)
        yield token_B


def answers(model: TapModel, batch: Batch, tokens: int, ends: Collection[int]) -> list[list[int]]:
    """Return the answer to every source of a batch as the student sees it, up to its end token.

    Raises:
        UsageError: the model is neither an encoder-decoder, nor files of one, nor a decoder that reads both as one row.
    """
    ids_BS, mask_BS, start_B = batch["input_ids"], batch["attention_mask"], batch["decoder_input_ids"][:, 0]
    if isinstance(model, Running):
        found_BT = torch.stack(list(written(model.module, ids_BS, mask_BS, start_B, tokens)), 1)
    elif isinstance(model, ExportedAnswers):
        found_BT = model.write(batch, tokens)
    elif isinstance(model, AnswerView | CutTeacher):
        pairs = zip(ids_BS, mask_BS, start_B, strict=True)
        rows = [torch.cat([ids[mask > 0], start[None]]) for ids, mask, start in pairs]
        found_BT = _continued(model.teacher, rows, tokens)
    else:
        raise UsageError(
            f"a {type(model).__name__} writes no answers, which a metric asks for", "--set evaluate.metric=answers"
        )
    return [until(row, ends) for row in found_BT.tolist()]


def _continued(teacher: Teacher, rows: Sequence[Tensor], tokens: int) -> Tensor:
    """Return the most likely continuation of every row [B, tokens], with caches if the teacher's weights are those of
    attention in every layer."""
    try:
        decoder = bounded_teacher(teacher, {}).decoder
    except PlanError:
        return torch.cat([continue_greedily(teacher, row[None], tokens) for row in rows])
    found = []
    for row in rows:
        logits_1TV, states = decoder.advance(row[None], 0, decoder.initial_states(), last=True)
        made = [logits_1TV[:, -1].argmax(-1)]
        for place in range(len(row), len(row) + tokens - 1):
            logits_1TV, states = decoder.advance(made[-1][:, None], place, states)
            made.append(logits_1TV[:, -1].argmax(-1))
        found.append(torch.stack(made, 1))
    return torch.cat(found)


def answer_pieces(model: TapModel, processor: Any, prompt: str, tokens: int) -> Iterator[str]:
    """Yield the prompt, and then the text that each token adds.

    Args:
        processor: tokenizer with ``encode`` and ``decode``.

    Raises:
        UsageError: there is no tokenizer, or the prompt has fewer than two tokens.
    """
    if processor is None:
        raise UsageError(
            "the student has no tokenizer, so it cannot read a prompt", "convert a teacher that has a tokenizer"
        )
    ids = list(processor.encode(prompt))
    if len(ids) < 2:
        raise UsageError("the prompt has fewer than two tokens", "enter a few words")
    if not isinstance(model, Running):
        raise UsageError(f"a {type(model).__name__} writes no answers, only encoder-decoders do")
    return _pieces(model, processor, ids, prompt, tokens)


def _pieces(model: Running, processor: Any, ids: list[int], prompt: str, tokens: int) -> Iterator[str]:
    yield prompt
    device = model.module.embed.weight.device
    ids_1S, start_1 = torch.tensor([ids[:-1]], device=device), torch.tensor(ids[-1:], device=device)
    made: list[int] = []
    shown = ""
    with torch.no_grad():
        for token_1 in written(model.module, ids_1S, torch.ones_like(ids_1S), start_1, tokens):
            if int(token_1) in model.facts.eos:
                return
            made.append(int(token_1))
            text = str(processor.decode(made))
            waits = text.endswith(UNFINISHED) and len(made) < tokens
            yield "" if waits else text[len(shown) :]
            shown = shown if waits else text
