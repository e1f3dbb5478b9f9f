"""Text generation: greedy for figures, and sampled token by token for people.

Legend: B prompts, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xarch import Batch, TapModel, UsageError
from xarch_decoder.model.decoder import MixerDecoder

if TYPE_CHECKING:
    from xarch_decoder.family import TextGeneration

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Ends a decoded text whose last character lacks bytes that later tokens bring."""


def continue_greedily(model: TapModel, prompt_BL: Tensor, tokens: int) -> Tensor:
    """Generate the ``tokens`` most likely next tokens one at a time, [B, tokens]."""
    made = _continued(model, prompt_BL, tokens, lambda logits_BV: logits_BV.argmax(-1))
    return torch.stack(list(made), 1)


def text_pieces(model: TapModel, processor: Any, prompt: str, options: TextGeneration) -> Iterator[str]:
    """Yield the prompt, unless it is a question, and then the text that each token adds.

    Args:
        processor: tokenizer with ``encode`` and ``decode``.

    Raises:
        UsageError: there is no tokenizer or chat template, or the prompt has no tokens.
    """
    if processor is None:
        raise UsageError(
            "the student has no tokenizer, so it cannot read a prompt", "convert a teacher that has a tokenizer"
        )
    ids = _question(processor, prompt) if options.chat else list(processor.encode(prompt))
    if not ids:
        raise UsageError("the prompt has no tokens", "enter a few words")
    prompt_1L = torch.tensor([ids], device=next(model.module.parameters()).device)
    return _pieces(model, processor, prompt_1L, "" if options.chat else prompt, options)


def _pieces(model: TapModel, processor: Any, prompt_1L: Tensor, given: str, options: TextGeneration) -> Iterator[str]:
    yield given
    end, made, shown = getattr(processor, "eos_token_id", None), [], ""
    with torch.no_grad():
        for token_1 in _continued(model, prompt_1L, options.tokens, _choice(options)):
            if int(token_1) == end:
                return
            made.append(int(token_1))
            text = str(processor.decode(made))
            waits = text.endswith(UNFINISHED) and len(made) < options.tokens
            yield "" if waits else text[len(shown) :]
            shown = shown if waits else text


def _question(processor: Any, prompt: str) -> list[int]:
    if not getattr(processor, "chat_template", None):
        raise UsageError("the student's tokenizer has no chat template", "leave out --set chat=true")
    found = processor.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    return [int(token) for token in found]


def _choice(options: TextGeneration) -> Callable[[Tensor], Tensor]:
    if options.temperature == 0:
        return lambda logits_BV: logits_BV.argmax(-1)
    generator = torch.Generator().manual_seed(options.seed)

    def drawn(logits_BV: Tensor) -> Tensor:
        p_BV, order_BV = (logits_BV.float().cpu() / options.temperature).softmax(-1).sort(-1, descending=True)
        p_BV[p_BV.cumsum(-1) - p_BV >= options.top_p] = 0
        picked_B1 = torch.multinomial(p_BV, 1, generator=generator)
        return order_BV.gather(-1, picked_B1)[:, 0].to(logits_BV.device)

    return drawn


def _continued(model: TapModel, prompt_BL: Tensor, tokens: int, choose: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Yield ``tokens`` next tokens [B], each chosen from logits [B, V]."""
    if isinstance(model.module, MixerDecoder):
        return _stepped(model.module, prompt_BL, tokens, choose)
    return _recomputed(model, prompt_BL, tokens, choose)


def _recomputed(model: TapModel, ids_BL: Tensor, tokens: int, choose: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    for _ in range(tokens):
        batch = Batch({"input_ids": ids_BL, "segment_ids": torch.zeros_like(ids_BL)}, ids_BL.numel())
        logits = model.collect(batch, ["logits"])["logits"]
        token_B = choose(logits.of(logits.x_BLD[:, -1]))
        yield token_B
        ids_BL = torch.cat([ids_BL, token_B[:, None]], 1)


def _stepped(
    decoder: MixerDecoder, prompt_BL: Tensor, tokens: int, choose: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """With the mixers' states, so that every token is read once."""
    states, token_B1 = decoder.initial_states(len(prompt_BL)), prompt_BL[:, :1]
    length = prompt_BL.shape[1]
    for position in range(length + tokens - 1):
        token_B1 = prompt_BL[:, position : position + 1] if position < length else token_B1
        logits_BLV, states = decoder.advance(token_B1, position, states)
        if position >= length - 1:
            token_B = choose(logits_BLV[:, -1])
            yield token_B
            token_B1 = token_B[:, None]
