"""Losses over a vocabulary, computed in chunks of tokens: no [tokens, vocabulary] tensor outlives a chunk.

Legend: B batch, L tokens, T = B*L flattened tokens, D width, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xarch import Batch, DivergenceOptions, Objective, Options, Tap, averaged, divergence
from xarch_decoder.factored import FactoredLogits

IGNORED = -100
"""Label that is ignored."""


class Chunked(Options):
    """Options of every loss over a vocabulary."""

    chunk: int = Field(256, ge=1, le=1 << 24, description="number of tokens whose logits are held at a time")


class KLOptions(DivergenceOptions, Chunked):
    """Options of ``kl`` on factored logits."""


class CrossEntropyOptions(Chunked):
    """Options of ``cross-entropy`` on factored logits."""

    smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label spread over the vocabulary")
    ahead: int = Field(
        1, ge=0, le=1 << 16, description="offset of a label in tokens after its position; 0 for shifted labels"
    )


class VocabularyObjective(Objective):
    """Base of losses computed at every token, with masks [B] or [B, L]."""

    units = "nats/token"
    Options = Chunked

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return layout in ("B", "BL", "BT")

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        v, w = student.shape.get("V"), None if teacher is None else teacher.shape.get("V")
        return f"V: {v} != {w}" if v and w and v != w else None


class KL(VocabularyObjective):
    """T² · KL(softmax(t/T) ‖ softmax(s/T)) per token, or the reverse, or Jensen–Shannon, at the same position on both
    sides (MOHAWK, arXiv 2408.10189, stage 3). Several teachers' probabilities are averaged with their weights.

    Without a mask a sample's loss is the mean over its tokens.
    """

    Options = KLOptions
    accepts = frozenset({("factored-logits", "factored-logits")})
    ensembles = True

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        teachers: Mapping[str, FactoredLogits] = teacher if isinstance(teacher, Mapping) else {"": teacher}
        heat = self.options.temperature

        def target(rows: slice) -> Tensor:
            logits = {name: z.of(z.x_BLD.flatten(0, -2)[rows]) for name, z in teachers.items()}
            return averaged(logits, self.context.weights, heat)

        x_TD: Tensor = student.x_BLD.flatten(0, -2)
        fused = self.options.direction == "forward" and not (_head_trains(student) and torch.is_grad_enabled())
        if fused:
            kl_T = _FusedKL.apply(x_TD, student, target, heat, self.options.chunk)
        else:

            def chunk(x_TD: Tensor, rows: slice) -> Tensor:
                return divergence(
                    target(rows), F.log_softmax(student.of(x_TD) / heat, -1), self.options.direction, self.options.share
                )

            kl_T = in_chunks(chunk, x_TD, self.options.chunk)
        kl_BL = kl_T.view(len(batch), -1) * heat**2
        if mask is None or mask.ndim == 1:
            return kl_BL.mean(1) if mask is None else kl_BL.mean(1) * mask
        return (kl_BL * mask).sum(1)

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return torch.ones(len(batch), device=batch.device)
        return mask.float() if mask.ndim == 1 else mask.float().sum(1)


class _FusedKL(torch.autograd.Function):
    """KL per token of a student with a frozen head.

    The forward pass also computes the gradient for the hidden state, so the head is multiplied once, not twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        student: FactoredLogits,
        target: Callable[[slice], Tensor],
        temperature: float,
        tokens: int,
    ) -> Tensor:
        kl_T = x_TD.new_empty(x_TD.shape[0], dtype=torch.float32)
        grad_TD = torch.empty_like(x_TD, dtype=torch.float32)
        for start in range(0, x_TD.shape[0], tokens):
            rows = slice(start, start + tokens)
            log_p_TV = target(rows)
            z_TV = student.of(x_TD[rows])
            slope_TV = None
            if student.softcap is not None:
                slope_TV = 1 - (z_TV / student.softcap).square()
            log_q_TV = F.log_softmax(z_TV / temperature, -1)
            p_TV = log_p_TV.exp()
            kl_T[rows] = (p_TV * (log_p_TV - log_q_TV)).sum(-1)
            dz_TV = (log_q_TV.exp_() - p_TV) / temperature
            if slope_TV is not None:
                dz_TV *= slope_TV
            grad_TD[rows] = dz_TV.to(student.weight_VD.dtype) @ student.weight_VD
        ctx.save_for_backward(grad_TD)
        return kl_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad_TD,) = ctx.saved_tensors
        return grad_TD * grads[0][:, None], None, None, None, None


class LabelObjective(VocabularyObjective):
    """Base of −log softmax(s)_y per token; a sample is weighted by its number of labels."""

    weighs_target = True

    @abstractmethod
    def labels(self, right: Any, batch: Batch) -> Tensor:
        """Return the label of every position [B, L] int64, -100 where there is none."""

    def smoothing(self) -> float:
        """Return the share of each label spread over the vocabulary."""
        return 0.0

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        label_BL, smoothing = self.labels(teacher, batch), self.smoothing()
        label_T = label_BL.flatten()

        def chunk(x_TD: Tensor, rows: slice) -> Tensor:
            return F.cross_entropy(
                student.of(x_TD), label_T[rows], reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
            )

        loss_BL = in_chunks(chunk, student.x_BLD.flatten(0, -2), self.options.chunk).view_as(label_BL)
        return (loss_BL * _positions(mask, loss_BL)).sum(1)

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        label_BL = self.labels(target, batch)
        return ((label_BL != IGNORED) * _positions(mask, label_BL)).sum(1)


class CrossEntropy(LabelObjective):
    """−log softmax(s)_y per token, y being the token `ahead` positions later on the right side (``batch:input_ids``).

    Labels in another document (``segment_ids``), beyond the end, or equal to -100 are ignored.
    """

    Options = CrossEntropyOptions
    accepts = frozenset({("factored-logits", "BL"), ("factored-logits", "BT")})

    def smoothing(self) -> float:
        return float(self.options.smoothing)

    def labels(self, right: Tensor, batch: Batch) -> Tensor:
        ahead = self.options.ahead
        if not ahead:
            return right.long()
        label_BL = right.long().roll(-ahead, 1)
        label_BL[:, -ahead:] = IGNORED
        segments_BL = batch.get("segment_ids")
        if segments_BL is not None:
            label_BL[:, :-ahead][segments_BL[:, ahead:] != segments_BL[:, :-ahead]] = IGNORED
        return label_BL


class HardLabel(LabelObjective):
    """−log softmax(s)_ŷ per token, ŷ being the teacher's most likely token at the same position."""

    accepts = frozenset({("factored-logits", "factored-logits")})

    def labels(self, right: FactoredLogits, batch: Batch) -> Tensor:
        likeliest = torch.cat([z_TV.argmax(-1) for _, z_TV in right.chunks(self.options.chunk)])
        return likeliest.view(right.x_BLD.shape[:-1])


def _head_trains(logits: FactoredLogits) -> bool:
    return logits.weight_VD.requires_grad or (logits.bias_V is not None and logits.bias_V.requires_grad)


def in_chunks(loss: Callable[[Tensor, slice], Tensor], x_TD: Tensor, tokens: int) -> Tensor:
    """Return a loss per token [T]; the logits of a chunk are recomputed for its gradient."""
    pieces = [
        checkpoint(loss, x_TD[start : start + tokens], slice(start, start + tokens), use_reentrant=False)
        for start in range(0, x_TD.shape[0], tokens)
    ]
    return torch.cat(pieces)


def _positions(mask: Tensor | None, like_BL: Tensor) -> Tensor:
    """Expand a mask [B] or [B, L] to every position [B, L], float32; ones without a mask."""
    if mask is None:
        return torch.ones_like(like_BL, dtype=torch.float32)
    mask = mask.float()
    return mask if mask.ndim == 2 else mask[:, None].expand_as(like_BL)
