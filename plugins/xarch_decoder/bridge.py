"""Losses between distributions over two vocabularies, at positions where both models have read the same text.

Legend: B batch, A pairs of positions, T counted pairs of the batch, D width, V vocabulary of the student, W of the
teacher, C tokens that both have.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch import Batch, Objective, Tap
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.objectives import Chunked, in_chunks

LEAST = 1e-8
"""Probability below which what is left over counts as none."""


class BridgeObjective(Objective):
    """Base of losses at pairs of positions.

    A match names the pairs as ``aux``: ``own`` and ``theirs`` [B, A], positions of the student's and of the teacher's
    logits, and as its mask [B, A] those that count. Data that align two tokenizers make them.
    """

    Options = Chunked
    accepts = frozenset({("factored-logits", "factored-logits")})

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return len(layout) == 2

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        return None

    @abstractmethod
    def distance(self, student_TV: Tensor, teacher_TW: Tensor, **more: Tensor) -> Tensor:
        """Return the loss [T] of logits of both.

        Args:
            more: further values that the match names.
        """

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        """Return the number of counted pairs; without a mask there would be no saying which are pads."""
        return _given(mask).float().sum(1)

    def forward(  # type: ignore[override]
        self,
        student: Any,
        teacher: Any,
        batch: Batch,
        *,
        mask: Tensor | None = None,
        own: Tensor,
        theirs: Tensor,
        **more: Tensor,
    ) -> Tensor:
        counted_BA = _given(mask) > 0
        x_TD, y_TD = _at(student, own)[counted_BA], _at(teacher, theirs)[counted_BA]

        def chunk(x_TD: Tensor, rows: slice) -> Tensor:
            return self.distance(student.of(x_TD), teacher.of(y_TD[rows]), **more)

        loss_T = in_chunks(chunk, x_TD, self.options.chunk) if len(x_TD) else x_TD.sum(1).float()
        row_T = counted_BA.nonzero()[:, 0]
        return loss_T.new_zeros(len(counted_BA)).index_add(0, row_T, loss_T)


class ULD(BridgeObjective):
    """Σ_i |p_T(i) − p_S(i)| per pair, both sorted in descending order, the shorter padded with zeros: the Universal
    Logit Distillation loss (arXiv 2402.12030)."""

    units = "probability/token"

    def distance(self, student_TV: Tensor, teacher_TW: Tensor, **more: Tensor) -> Tensor:
        p_TV = student_TV.softmax(-1).sort(-1, descending=True).values
        q_TW = teacher_TW.softmax(-1).sort(-1, descending=True).values
        wider = max(p_TV.shape[1], q_TW.shape[1])
        p_TV, q_TW = (F.pad(p, (0, wider - p.shape[1])) for p in (p_TV, q_TW))
        return (p_TV - q_TW).abs().sum(-1)


class VocabMap(BridgeObjective):
    """KL(teacher ‖ student) per pair over the tokens that both vocabularies have, and all others together as one.

    ``words`` [B, V], equal for all rows, is the teacher's id of each of the student's tokens, −1 where it has none.
    """

    units = "nats/token"

    @classmethod
    def arguments(cls) -> dict[str, bool]:
        return {**super().arguments(), "words": True}

    def distance(self, student_TV: Tensor, teacher_TW: Tensor, **more: Tensor) -> Tensor:
        words_V = more["words"][0]
        here_C = (words_V >= 0).nonzero()[:, 0]
        p = _with_rest(teacher_TW.softmax(-1)[:, words_V[here_C].long()])
        q = _with_rest(student_TV.softmax(-1)[:, here_C])
        return (p * (p.log() - q.log())).sum(-1)


def _with_rest(p_TC: Tensor) -> Tensor:
    """Return probabilities with what they leave over as a last one, none of them zero."""
    rest_T1 = 1 - p_TC.sum(-1, keepdim=True)
    return torch.cat([p_TC, rest_T1], -1).clamp(min=LEAST)


def _at(logits: FactoredLogits, places_BA: Tensor) -> Tensor:
    """Return the hidden states at positions [B, A, D]."""
    index_BAD = places_BA.long()[..., None].expand(-1, -1, logits.x_BLD.shape[-1])
    return logits.x_BLD.gather(1, index_BAD)


def _given(mask_BA: Tensor | None) -> Tensor:
    if mask_BA is None:
        raise ValueError("a loss at pairs of positions needs a mask, e.g. `mask: batch:bridge_mask`")
    return mask_BA
