"""The compiled visit of all tiles, see kernel.cpp.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, N state size.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xarch.kernels.native import declare, kernel


@dataclass(frozen=True, slots=True)
class Visit:
    """Distances and, if wanted, gradients of half the squared distance times a factor (else empty), all float32."""

    distance_BH: Tensor
    teacher_norm_BH: Tensor
    dC_BLGN: Tensor
    dB_BLGN: Tensor
    dlog_a_BLH: Tensor
    dD_BH: Tensor


class _Strided(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "token", "head")))


_SIZES = ("batch", "length", "heads", "key_heads", "groups", "width", "state", "window")
_FACTORS = ("q", "k", "C", "B", "log_a")
_ADDRESSES = ("D", "segments", "real", "factor", "error", "teacher", "dC", "dB", "dlog_a", "dD")


class _Problem(ctypes.Structure):
    """``Problem`` of problem.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
        *((name, _Strided) for name in _FACTORS),
        *((name, ctypes.c_void_p) for name in _ADDRESSES),
    )


def visit(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    C_BLGN: Tensor,
    B_BLGN: Tensor,
    log_a_BLH: Tensor,
    D_H: Tensor | None,
    segment_ids_BL: Tensor | None,
    mask_BL: Tensor | None,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    gradient: bool,
    factor_BH: Tensor | None = None,
) -> Visit:
    """All tiles once, in float32 whatever the dtypes; results do not depend on what ran before or beside it."""
    batch, length, heads, width = q_BLHE.shape
    groups, state = C_BLGN.shape[2:]
    factors = [_rows(t) for t in (q_BLHE, k_BLKE, C_BLGN, B_BLGN)]
    log_a = log_a_BLH.detach().float()
    D, segments = _flat(D_H, torch.float32), _flat(segment_ids_BL, torch.int64)
    real, factor = _flat(mask_BL, torch.bool), _flat(factor_BH, torch.float32)
    new = q_BLHE.new_empty
    error, teacher = (new((batch, heads), dtype=torch.float64) for _ in range(2))
    shapes = [(batch, length, groups, state)] * 2 + [(batch, length, heads), (batch, heads)]
    grads = [new(shape if gradient else (0,), dtype=torch.float32) for shape in shapes]
    if q_BLHE.numel() * state == 0:
        return _nothing(error, teacher, grads)
    _library().matrix_distance(
        ctypes.byref(
            _Problem(
                batch,
                length,
                heads,
                k_BLKE.shape[2],
                groups,
                width,
                state,
                0 if window is None else min(window, length),
                scale,
                softcap or 0.0,
                *(_Strided(t.data_ptr(), *t.stride()[:3]) for t in (*factors, log_a)),
                *(None if t is None else t.data_ptr() for t in (D, segments, real, factor, error, teacher)),
                *(t.data_ptr() if gradient else None for t in grads),
            )
        ),
        torch.get_num_threads(),
    )
    return Visit(error.sqrt().float(), teacher.sqrt().float(), *grads)


def _nothing(error: Tensor, teacher: Tensor, grads: list[Tensor]) -> Visit:
    return Visit(error.zero_().float(), teacher.zero_().float(), *(g.zero_() for g in grads))


@kernel("matrix_distance", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    declare(loaded.matrix_distance, ctypes.POINTER(_Problem), ctypes.c_int)


def _rows(t_BLGN: Tensor) -> Tensor:
    """In float32, the last dimension without gaps."""
    t_BLGN = t_BLGN.detach().float()
    return t_BLGN if t_BLGN.stride(-1) == 1 else t_BLGN.contiguous()


def _flat(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.detach().to(dtype).contiguous()
