"""How much a model's answer depends on the outputs of its parts.

Legend: B samples, L positions, D width, V logits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from xarch import Batch, Student
from xarch.matching.objectives.dense import opened

LOGITS = "logits"


def sensitivities(model: Student, batch: Batch, paths: Collection[str]) -> dict[str, Tensor]:
    """Return path -> squared gradient [B, L] of the answer by the output of that module at every position: an error e
    of the output changes the divergence from the answer by about |e|² times half of it, over D.

    The answer's probabilities weigh its logits, along one direction of equal signs for every batch, so values do not
    depend on what else is in it. All positions are run together, forward and backward.

    Args:
        model: frozen, in eval mode. paths: modules whose outputs are [B, ..., D].
    """
    shifts: dict[str, Tensor] = {}

    def hook(path: str) -> object:
        def add(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
            shifts[path] = torch.zeros_like(made, requires_grad=True)
            return made + shifts[path]

        return add

    handles = [model.module.get_submodule(p).register_forward_hook(hook(p)) for p in paths]  # type: ignore[arg-type]
    try:
        with torch.enable_grad():
            logits = opened(model.collect(batch, {LOGITS})[LOGITS]).float()
            answer = (logits * _direction(logits.detach())).sum()
            found = torch.autograd.grad(answer, list(shifts.values()))
    finally:
        for handle in handles:
            handle.remove()
    squares: Mapping[str, Tensor] = dict(zip(shifts, (g.detach().float().square().sum(-1) for g in found), strict=True))
    return {path: value.reshape(value.shape[0], -1) for path, value in squares.items()}


def _direction(logits: Tensor) -> Tensor:
    """Return u [..., V] with E[u uᵀ] = diag(p) - p pᵀ over signs, the second derivative of the divergence."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (logits.shape[-1],), generator=generator).to(logits) * 2 - 1
    if logits.ndim > 2:
        each = torch.randint(0, 2, (logits.shape[-2], 1), generator=generator).to(logits) * 2 - 1
        signs = signs * each
    chance = logits.softmax(-1)
    drawn = chance.sqrt() * signs
    return drawn - chance * (chance.sqrt() * drawn).sum(-1, keepdim=True)
