"""The matrix and hidden stages as their authors published them, for comparison (MOHAWK, arXiv 2408.10189).

The teacher runs once with everything kept; every layer's attention and mixing matrices are built; the losses of all
layers are added before one backward pass. The mixer runs on the plain references of mamba_ssm. Student, start and
optimiser are those of xarch, so that only the way through the stages differs. Packed documents are not kept apart.

    MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.peers import mamba_ssm, materialised
from xarch import Batch
from xarch.kernels import matrix_distance, register, use_backend
from xarch.kernels.matrix_distance import MatrixDistance

NAME = "published"


@register("matrix_distance", NAME, priority=-1)
def distance(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    C_BLGN: Tensor,
    B_BLGN: Tensor,
    log_a_BLH: Tensor,
    D_H: Tensor,
    *,
    scale: float,
    **rest: Any,
) -> MatrixDistance:
    """Both matrices of the layer; causal attention without window, documents or padding."""
    with torch.no_grad():
        P_BHLL = materialised.attention(q_BLHE, k_BLKE, scale)
    M_BHLL = materialised.mixing(C_BLGN, B_BLGN, log_a_BLH, D_H)
    return MatrixDistance(torch.linalg.matrix_norm(M_BHLL - P_BHLL), torch.linalg.matrix_norm(P_BHLL))


@register("ssd", NAME, priority=-1)
def ssd(
    x_BLHP: Tensor, log_a_BLH: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, D_H: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    """``ssd_minimal_discrete`` in blocks of 64 tokens."""
    mamba_ssm.importable()
    from mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete

    heads = x_BLHP.shape[2]
    B_BLHN, C_BLHN = (t.repeat_interleave(heads // t.shape[2], 2) for t in (B_BLGN, C_BLGN))
    y_BLHP = ssd_minimal_discrete(x_BLHP, log_a_BLH, B_BLHN, C_BLHN, 64)[0]
    return (y_BLHP if D_H is None else y_BLHP + D_H[:, None] * x_BLHP), None


@register("causal_conv1d", NAME, priority=-1)
def convolution(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, **rest: Any) -> tuple[Tensor, None]:
    """Depthwise ``conv1d`` on padded inputs."""
    y_BCL = torch.nn.functional.conv1d(
        x_BLC.transpose(1, 2),
        weight_CK[:, None],
        bias_C,
        padding=weight_CK.shape[1] - 1,
        groups=weight_CK.shape[0],
    )
    return y_BCL[..., : x_BLC.shape[1]].transpose(1, 2), None


def loss(student: Any, kept: dict[str, Any], site: str, batch: Batch, stage: str) -> Tensor:
    """Return the loss of one layer."""
    leaf, compare = LOSSES[stage]
    with use_backend(NAME):
        own = student.run_site(site, {"input": kept[f"{site}.input"]}, {leaf}, batch)[leaf]
    return compare(own, kept[f"{site}.{leaf}"])


def disagreement(teacher: Any, student: Any, batch: Batch) -> float:
    """Largest relative difference between this recipe's losses of the first layer and those of xarch's kernels."""
    site = next(iter(student.sites()))
    worst = 0.0
    with torch.no_grad():
        for stage, (leaf, compare) in LOSSES.items():
            kept = teacher.collect(batch, {f"{site}.input", f"{site}.{leaf}"})
            published = loss(student, kept, site, batch, stage)
            own = student.run_site(site, {"input": kept[f"{site}.input"]}, {leaf}, batch)[leaf]
            given = kept[f"{site}.{leaf}"]
            if stage == "matrix":
                factors = (given.q_BLHE, given.k_BLKE, own.C_BLGN, own.B_BLGN, own.log_a_BLH, own.D_H)
                ours = matrix_distance(*factors, scale=given.scale).distance_BH.mean()
            else:
                ours = compare(own, given)
            worst = max(worst, float((published - ours).abs() / ours.abs()))
    return worst


def step(teacher: Any, student: Any, adam: torch.optim.Optimizer, batch: Batch, stage: str, norm: float) -> float:
    """One update of all layers; the loss is the mean over layers.

    Args:
        stage: "matrix" or "hidden".
        norm: limit of the gradient's norm.
    """
    leaf = LOSSES[stage][0]
    sites = student.sites()
    with torch.no_grad():
        kept = teacher.collect(batch, {f"{s}.input" for s in sites} | {f"{s}.{leaf}" for s in sites})
    total = torch.stack([loss(student, kept, site, batch, stage) for site in sites]).mean()
    total.backward()
    torch.nn.utils.clip_grad_norm_([p for g in adam.param_groups for p in g["params"]], norm)
    adam.step()
    adam.zero_grad()
    return float(total.detach())


def _frobenius(own: Any, given: Any) -> Tensor:
    found = distance(given.q_BLHE, given.k_BLKE, own.C_BLGN, own.B_BLGN, own.log_a_BLH, own.D_H, scale=given.scale)
    return found.distance_BH.mean()


def _hidden(own: Tensor, given: Tensor) -> Tensor:
    return torch.linalg.vector_norm(own - given, dim=-1).mean()


LOSSES: dict[str, tuple[str, Callable[[Any, Any], Tensor]]] = {
    "matrix": ("matrix", _frobenius),
    "hidden": ("output", _hidden),
}
"""Stage -> compared tap and loss."""
