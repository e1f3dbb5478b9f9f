"""Whole sequences in C++ for CPUs, float32 inside: a job is one key/value head of one sequence. Without gradients.

Legend: B batch, L tokens, H heads, K key/value heads, G heads that share one, E head width.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary
from xarch.kernels.dispatch import register
from xarch.kernels.folded_memory.layout import HALFWAY, FoldedLayout, FoldedRanges
from xarch.kernels.folded_memory.naive import folded_memory_naive
from xarch.kernels.folded_memory.plain import folded_memory_plain
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.native.tensors import call_of, dense
from xarch.kernels.precision import island_dtype
from xarch.kernels.selfcheck import SelfCheckError, row_error, waves

_SIZES = ("batch", "length", "heads", "kv_heads", "width", "pairs", "fold", "sinks", "whole", "threads")
_NUMBERS = ("scale", "softcap", "gain", "kept", "cap", "halfway")
_TENSORS = (
    "slots", "windows", "q", "keys", "values", "key_scale", "value_scale", "query_square", "frequencies", "y",
)  # fmt: skip
_Call = call_of(_SIZES, _TENSORS, numbers=_NUMBERS)


@kernel("folded_memory", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    declare(loaded.folded_memory_forward, ctypes.POINTER(_Call))


def _check(_: str) -> None:
    """Two heads of different sizes, first tokens, merges of several into one, and a part of a fold at the end."""
    layout = FoldedLayout((4, 6), (5, 4), fold=4, sinks=2, precision="float32")
    rotary = Rotary((1.0, 0.3), scale=0.5)
    q, k, v = waves(1, 43, 4, 6, phase=0.1), waves(1, 43, 2, 6, phase=0.7), waves(1, 43, 2, 6, phase=1.9)
    ranges = FoldedRanges(torch.ones(2, 6), torch.ones(2, 6), torch.full((2, 2), 3.0))
    found = folded_memory_cpp(q, k, v, layout, rotary, ranges)
    wide = [t.double() for t in (q, k, v)]
    wanted = folded_memory_naive(*wide, layout, rotary, FoldedRanges(*(t.double() for t in ranges)))
    error = row_error(found, wanted)
    if not error <= 2e-5:
        raise SelfCheckError(f"self-check failed: the output is off by {error:.1e}, want 2e-05")


@register(
    "folded_memory",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    lacks=["gradients"],
    available=why_not,
    check=_check,
)
def folded_memory_cpp(
    q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, layout: FoldedLayout, rotary: Rotary, ranges: FoldedRanges
) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.folded_memory`, positions from 0 in every row."""
    if island_dtype(q_BLHE, k_BLKE, v_BLKE) == torch.float64 or q_BLHE.numel() == 0:
        return folded_memory_plain(q_BLHE, k_BLKE, v_BLKE, layout, rotary, ranges)
    batch, length, heads, width = q_BLHE.shape
    y_BLHE = q_BLHE.new_empty(q_BLHE.shape, dtype=torch.float32)
    tensors = {
        "slots": torch.tensor(layout.slots),
        "windows": torch.tensor(layout.windows),
        "q": dense(q_BLHE),
        "keys": dense(k_BLKE),
        "values": dense(v_BLKE),
        "key_scale": dense(ranges.key_scale_KE),
        "value_scale": dense(ranges.value_scale_KE),
        "query_square": dense(ranges.query_square_KG),
        "frequencies": torch.tensor(rotary.frequencies, dtype=torch.float64),
        "y": y_BLHE,
    }
    call = _Call(
        batch=batch,
        length=length,
        heads=heads,
        kv_heads=layout.heads,
        width=width,
        pairs=len(rotary.frequencies),
        fold=layout.fold,
        sinks=layout.sinks,
        whole=layout.precision == "int8",
        threads=torch.get_num_threads(),
        scale=rotary.scale,
        softcap=rotary.softcap or 0.0,
        gain=rotary.gain,
        kept=layout.decay**layout.fold,
        cap=layout.cap,
        halfway=HALFWAY,
        **{name: t.data_ptr() for name, t in tensors.items()},
    )
    _library().folded_memory_forward(call)
    return y_BLHE.to(q_BLHE.dtype)
