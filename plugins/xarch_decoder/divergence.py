"""How far a decoder's next-token distributions move while an export rounds its weights.

Legend: L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xarch import Batch, Divergence
from xarch_decoder.student import DecoderStudent

TOKENS = 512
"""Tokens that are read for one figure."""

MOST_KL = 0.01
"""Divergence up to which weights keep their few bits: a perplexity within about a hundredth of the student's."""


def decoder_divergence(student: DecoderStudent, batches: Sequence[Batch]) -> Divergence:
    """Return the mean divergence from the student's present distributions on calibration text, nats/token.

    Args:
        batches: rows of several places in the corpus; each gives the same number of tokens.
    """
    rows = [row for batch in batches for row in batch["input_ids"]][: TOKENS // 64]
    share = TOKENS // len(rows)
    known = [(row[None, :share], _log_probabilities(student, row[None, :share])) for row in rows]

    def measure() -> float:
        total = tokens = 0.0
        for ids_1L, p_LV in known:
            q_LV = _log_probabilities(student, ids_1L)
            total += float((p_LV.exp() * (p_LV - q_LV)).sum())
            tokens += len(p_LV)
        return total / tokens

    return Divergence(measure, MOST_KL, "nats/token")


@torch.no_grad()
def _log_probabilities(student: DecoderStudent, ids_1L: Tensor) -> Tensor:
    logits = student.collect(Batch({"input_ids": ids_1L}, ids_1L.numel()), ["logits"])["logits"]
    return logits.full()[0].float().log_softmax(-1)
