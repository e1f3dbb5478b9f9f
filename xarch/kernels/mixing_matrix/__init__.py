"""The matrix a state-space mixer applies to its values, materialised: for inspection and tests.

Legend: B batch, L tokens, H heads, G B/C groups, N state size.
"""

from __future__ import annotations

from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.dispatch import select
from xarch.kernels.mixing_matrix import naive, plain
from xarch.kernels.precision import without_autocast

__all__ = ["mixing_matrix", "naive", "plain"]


def mixing_matrix(
    C_BLGN: Tensor,
    B_BLGN: Tensor,
    log_a_BLH: Tensor,
    D_H: Tensor | None = None,
    *,
    segment_ids_BL: Tensor | None = None,
    mask_BL: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """M[t, s] = (C_t · B_s) exp(S_t - S_s) + D [t = s] for s <= t, with S the running sum of ``log_a``.

    Its memory is quadratic in L; :func:`xarch.kernels.matrix_distance` compares without building it. Differentiable.

    Args:
        C_BLGN, B_BLGN: output and input vectors; head h uses group ``h // (H // G)``.
        log_a_BLH: log of the decay, <= 0.
        D_H: skip weight per head, or None.
        segment_ids_BL: document of each token; entries across a change of id are zero.
        mask_BL: True for real tokens; rows and columns of padding are zero.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        [B, H, L, L], in float32 (float64 if an input is float64).

    Raises:
        UsageError: shapes do not fit together, or the backend cannot run the call.
    """
    _check(C_BLGN, B_BLGN, log_a_BLH, D_H, segment_ids_BL, mask_BL)
    features = {"segment_ids"} if segment_ids_BL is not None else set()
    if mask_BL is not None:
        features.add("mask")
    chosen = select("mixing_matrix", C_BLGN.device, C_BLGN.dtype, features=features, backend=backend)
    with without_autocast(C_BLGN.device):
        return chosen.run(C_BLGN, B_BLGN, log_a_BLH, D_H, segment_ids_BL=segment_ids_BL, mask_BL=mask_BL)


def _check(C: Tensor, B: Tensor, log_a: Tensor, D: Tensor | None, segments: Tensor | None, mask: Tensor | None) -> None:
    if C.dim() != 4 or log_a.dim() != 3:
        raise UsageError(
            f"mixing_matrix: want C [B, L, G, N] and log_a [B, L, H], got {list(C.shape)} and {list(log_a.shape)}"
        )
    batch, length, groups, size = C.shape
    heads = log_a.shape[2]
    wanted = {
        "B": (B, (batch, length, groups, size)),
        "log_a": (log_a, (batch, length, heads)),
        "D": (D, (heads,)),
        "segment_ids": (segments, (batch, length)),
        "mask": (mask, (batch, length)),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and tuple(value.shape) != shape:
            raise UsageError(
                f"mixing_matrix: {name} has shape {list(value.shape)}, want {list(shape)} for C {list(C.shape)}"
            )
    if groups < 1 or heads % groups:
        raise UsageError(f"mixing_matrix: {groups} B/C groups do not divide {heads} heads")
