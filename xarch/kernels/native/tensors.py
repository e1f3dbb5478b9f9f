"""Tensors as C++ sees them: addresses with strides, float32; and what a call is told.

Legend: B batch, L tokens, H heads or groups.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor


class Rows(ctypes.Structure):
    """A tensor [B, L, H, ...] whose last dimension, if it has a fourth, is dense (``Rows`` in chunk.h)."""

    _fields_ = [("at", ctypes.c_void_p), ("batch", ctypes.c_int64), ("token", ctypes.c_int64), ("head", ctypes.c_int64)]

    @classmethod
    def of(cls, t: Tensor) -> Rows:
        """The tensor must outlive the call that reads it."""
        return cls(t.data_ptr(), *t.stride()[:3])


def call_of(
    sizes: Sequence[str], tensors: Sequence[str], *, strided: Sequence[str] = (), numbers: Sequence[str] = ()
) -> type[ctypes.Structure]:
    """Return the structure of a call, as ``Call`` of a kernel.cpp declares it: sizes (int64), strided tensors
    (:class:`Rows`), numbers (double), addresses of dense tensors."""
    kinds = ((sizes, ctypes.c_int64), (strided, Rows), (numbers, ctypes.c_double), (tensors, ctypes.c_void_p))
    return type("Call", (ctypes.Structure,), {"_fields_": [(name, kind) for names, kind in kinds for name in names]})


def rows(t: Tensor) -> Tensor:
    """In float32 with a dense last dimension; no copy if it is so already."""
    t = t.float()
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def dense(t: Tensor) -> Tensor:
    """In float32 and contiguous."""
    return t.float().contiguous()
