"""Tensors as C++ sees them: addresses with strides, float32.

Legend: B batch, L tokens, H heads or groups.
"""

from __future__ import annotations

import ctypes

from torch import Tensor


class Rows(ctypes.Structure):
    """A tensor [B, L, H, ...] whose last dimension, if it has a fourth, is dense (``Rows`` in chunk.h)."""

    _fields_ = [("at", ctypes.c_void_p), ("batch", ctypes.c_int64), ("token", ctypes.c_int64), ("head", ctypes.c_int64)]

    @classmethod
    def of(cls, t: Tensor) -> Rows:
        """The tensor must outlive the call that reads it."""
        return cls(t.data_ptr(), *t.stride()[:3])


def rows(t: Tensor) -> Tensor:
    """In float32 with a dense last dimension; no copy if it is so already."""
    t = t.float()
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def dense(t: Tensor) -> Tensor:
    """In float32 and contiguous."""
    return t.float().contiguous()
