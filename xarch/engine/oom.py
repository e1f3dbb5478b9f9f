"""Recognise that memory ran out, on every device."""

from __future__ import annotations

import gc

import torch

_CPU_WORDS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "defaultcpuallocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an allocation failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _CPU_WORDS)


def release_memory() -> None:
    """Return what can be returned before trying again."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
