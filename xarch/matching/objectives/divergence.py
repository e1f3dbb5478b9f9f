"""Divergences between distributions over classes, shared by dense and factored logits.

Legend: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch.contracts.options import Options


class DivergenceOptions(Options):
    """Options of ``kl``."""

    temperature: float = Field(1.0, gt=0, description="softens both sides; the loss is scaled by its square")
    direction: Literal["forward", "reverse", "js"] = Field(
        "forward", description="forward: KL(teacher ‖ student); reverse: KL(student ‖ teacher); js: to their mean"
    )
    share: float = Field(0.5, gt=0, lt=1, description="js: share β of the teacher in the mean")


def divergence(log_p: Tensor, log_q: Tensor, direction: str = "forward", share: float = 0.5) -> Tensor:
    """Return the divergence of log-probabilities [..., K] in nats, [...].

    Args:
        log_p: of the right side.
        log_q: of the student.
        direction: "forward" KL(p ‖ q), "reverse" KL(q ‖ p), "js" β KL(p ‖ m) + (1 − β) KL(q ‖ m) with
            m = β p + (1 − β) q.
        share: β.
    """
    if direction == "forward":
        return _kl(log_p, log_q)
    if direction == "reverse":
        return _kl(log_q, log_p)
    log_m = torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))
    return share * _kl(log_p, log_m) + (1 - share) * _kl(log_q, log_m)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # A class of probability zero contributes nothing, whatever the other side is (0 · -inf is NaN).
    return (log_p.exp() * (log_p - log_q)).masked_fill(log_p == -torch.inf, 0.0).sum(-1)


def averaged(logits: Mapping[str, Tensor], weights: Mapping[str, float], temperature: float = 1.0) -> Tensor:
    """Return the log of the mean of softmax(logits / temperature) [..., K] over several teachers.

    Args:
        logits: by teacher, [..., K].
        weights: by teacher, 1 where a name is absent.
    """
    log_p = {name: F.log_softmax(z / temperature, -1) for name, z in logits.items()}
    if len(log_p) == 1:
        return next(iter(log_p.values()))
    share = {name: weights.get(name, 1.0) for name in log_p}
    whole = sum(share.values())
    weighted = [p + math.log(share[name] / whole) for name, p in log_p.items() if share[name] > 0]
    return torch.logsumexp(torch.stack(weighted), 0)
