"""Losses over a vocabulary, walked over in chunks of tokens: no [tokens, vocabulary] tensor survives a chunk.

Legend: B batch, L tokens, T = B*L flattened tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xarch import Batch, Objective, Tap
from xarch_decoder.factored import FactoredLogits


class _FusedKL(torch.autograd.Function):
    """KL per token of a student whose head is frozen: the gradient for the hidden state is computed in the forward
    pass, so the head is multiplied once instead of twice."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, student: FactoredLogits, teacher: FactoredLogits, temperature: float, tokens: int
    ) -> Tensor:
        kl_T = x_TD.new_empty(x_TD.shape[0], dtype=torch.float32)
        grad_TD = torch.empty_like(x_TD, dtype=torch.float32)
        xt_TD = teacher.x_BLD.flatten(0, -2)
        for start in range(0, x_TD.shape[0], tokens):
            rows = slice(start, start + tokens)
            log_p_TV = F.log_softmax(teacher.of(xt_TD[rows]) / temperature, -1)
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


def _chunk_kl(
    x_TD: Tensor, student: FactoredLogits, xt_TD: Tensor, teacher: FactoredLogits, temperature: float
) -> Tensor:
    log_p_TV = F.log_softmax(teacher.of(xt_TD) / temperature, -1)
    log_q_TV = F.log_softmax(student.of(x_TD) / temperature, -1)
    return (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1)


class KL(Objective):
    """KL(teacher ‖ student) per token, same position on both sides, mean over tokens (MOHAWK stage 3).

    Options:
        temperature: softens both sides; the loss is scaled by its square (default 1).
        chunk: tokens per chunk (default 256).
    A batch tensor ``loss_mask`` [B, L] restricts the tokens that count.
    """

    accepts = frozenset({("factored-logits", "factored-logits")})
    units = "nats/token"

    def __init__(self, student: Tap, teacher: Tap | None, options: Mapping[str, Any]) -> None:
        super().__init__(student, teacher, options)
        self.temperature = float(options.get("temperature", 1.0))
        self.chunk = int(options.get("chunk", 256))

    def forward(self, student: FactoredLogits, teacher: FactoredLogits, batch: Batch, **aux: Any) -> Tensor:
        x_TD, xt_TD = student.x_BLD.flatten(0, -2), teacher.x_BLD.flatten(0, -2)
        head_trains = student.weight_VD.requires_grad or (student.bias_V is not None and student.bias_V.requires_grad)
        if head_trains and torch.is_grad_enabled():
            pieces = [
                checkpoint(
                    _chunk_kl,
                    x_TD[i : i + self.chunk],
                    student,
                    xt_TD[i : i + self.chunk],
                    teacher,
                    self.temperature,
                    use_reentrant=False,
                )
                for i in range(0, x_TD.shape[0], self.chunk)
            ]
            kl_T = torch.cat(pieces)
        else:
            kl_T = _FusedKL.apply(x_TD, student, teacher, self.temperature, self.chunk)
        return _per_sample(kl_T * self.temperature**2, batch)

    def weight(self, batch: Batch) -> Tensor:
        return _token_weight(batch)


class CrossEntropy(Objective):
    """Next-token cross-entropy against ``batch:input_ids``; a teacher is not needed.

    Option ``chunk``: tokens per chunk (default 256). Targets in another document (``segment_ids``) do not count.
    """

    accepts = frozenset({("factored-logits", "batch")})
    units = "nats/token"

    def forward(self, student: FactoredLogits, teacher: Tensor, batch: Batch, **aux: Any) -> Tensor:
        chunk = int(self.options.get("chunk", 256))
        target_BL = teacher.roll(-1, 1).clone()
        target_BL[:, -1] = -100
        segments_BL = batch.get("segment_ids")
        if segments_BL is not None:
            target_BL[:, :-1][segments_BL[:, 1:] != segments_BL[:, :-1]] = -100
        x_TD, target_T = student.x_BLD.flatten(0, -2), target_BL.flatten()
        pieces = [
            checkpoint(_chunk_ce, x_TD[i : i + chunk], student, target_T[i : i + chunk], use_reentrant=False)
            for i in range(0, x_TD.shape[0], chunk)
        ]
        counted_B = (target_BL != -100).sum(1).clamp_min(1)
        return torch.cat(pieces).view_as(target_BL).sum(1) / counted_B


def _chunk_ce(x_TD: Tensor, student: FactoredLogits, target_T: Tensor) -> Tensor:
    return F.cross_entropy(student.of(x_TD), target_T, reduction="none", ignore_index=-100)


def _per_sample(value_T: Tensor, batch: Batch) -> Tensor:
    value_BL = value_T.view(len(batch), -1)
    mask_BL = batch.get("loss_mask")
    return value_BL.mean(1) if mask_BL is None else (value_BL * mask_BL).sum(1)


def _token_weight(batch: Batch) -> Tensor:
    mask_BL = batch.get("loss_mask")
    if mask_BL is not None:
        return mask_BL.float().sum(1)
    return torch.ones(len(batch), device=next(iter(batch.tensors.values())).device)
