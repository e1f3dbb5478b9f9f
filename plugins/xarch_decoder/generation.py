"""Greedy text generation, for inspection by a person.

Legend: B prompts, L tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xarch import Batch, TapModel, UsageError
from xarch_decoder.model.decoder import MixerDecoder


def continue_greedily(model: TapModel, prompt_BL: Tensor, tokens: int) -> Tensor:
    """Generate the ``tokens`` most likely next tokens one at a time, [B, tokens]."""
    if isinstance(model.module, MixerDecoder):
        return _step_by_step(model.module, prompt_BL, tokens)
    ids_BL = prompt_BL
    for _ in range(tokens):
        batch = Batch({"input_ids": ids_BL, "segment_ids": torch.zeros_like(ids_BL)}, ids_BL.numel())
        logits = model.collect(batch, ["logits"])["logits"]
        ids_BL = torch.cat([ids_BL, logits.of(logits.x_BLD[:, -1]).argmax(-1, keepdim=True)], 1)
    return ids_BL[:, prompt_BL.shape[1] :]


def continue_text(model: TapModel, processor: Any, prompt: str, tokens: int) -> str:
    """Continue the prompt greedily by ``tokens`` tokens; return the prompt and continuation as text.

    Args:
        processor: tokenizer with ``encode`` and ``decode``.

    Raises:
        UsageError: there is no tokenizer, or the prompt has no tokens.
    """
    if processor is None:
        raise UsageError(
            "the student has no tokenizer, so it cannot read a prompt", "convert a teacher that has a tokenizer"
        )
    ids = list(processor.encode(prompt))
    if not ids:
        raise UsageError("the prompt has no tokens", "enter a few words")
    with torch.no_grad():
        made_BL = continue_greedily(model, torch.tensor([ids], device=next(model.module.parameters()).device), tokens)
    return prompt + str(processor.decode(made_BL[0].tolist()))


def _step_by_step(decoder: MixerDecoder, prompt_BL: Tensor, tokens: int) -> Tensor:
    """Generate with the mixers' states, so that every token is read once."""
    states = decoder.initial_states(len(prompt_BL))
    ids_BL = prompt_BL
    length = prompt_BL.shape[1]
    for position in range(length + tokens - 1):
        logits_BLV, states = decoder.advance(ids_BL[:, position : position + 1], position, states)
        if position >= length - 1:
            ids_BL = torch.cat([ids_BL, logits_BLV[:, -1].argmax(-1, keepdim=True)], 1)
    return ids_BL[:, length:]
