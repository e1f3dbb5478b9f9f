"""The memory in C++ for CPUs, float32 inside: a job is one key/value head of one sequence. Without gradients.

Legend: B batch, L tokens, H heads, K key/value heads, E head width, W window, S sinks, N slots.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary
from xarch.kernels.dispatch import register
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.native.tensors import call_of
from xarch.kernels.precision import island_dtype
from xarch.kernels.selfcheck import SelfCheckError, row_error, waves
from xarch.kernels.slot_memory.layout import MemoryLayout, quantised
from xarch.kernels.slot_memory.naive import slot_memory_naive
from xarch.kernels.slot_memory.plain import slot_memory_plain

_SIZES = (
    "batch", "length", "heads", "kv_heads", "width", "pairs", "sinks", "window", "slots", "age", "half", "threads",
)  # fmt: skip
_NUMBERS = ("scale", "softcap", "gain", "decay")
_TENSORS = (
    "q", "keys", "values", "importance", "sink_keys", "sink_values", "slot_keys", "slot_values", "slot_positions",
    "slot_importance", "positions", "frequencies", "y",
)  # fmt: skip
_Call = call_of(_SIZES, _TENSORS, numbers=_NUMBERS)


@kernel("slot_memory", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    declare(loaded.slot_memory_forward, ctypes.POINTER(_Call))


def _check(_: str) -> None:
    """Two heads, evictions and a second document."""
    layout = MemoryLayout(sinks=2, window=5, slots=4, age=2)
    rotary = Rotary((1.0, 0.3), scale=0.5)
    q, k, v = waves(1, 40, 4, 6, phase=0.1), waves(1, 40, 2, 6, phase=0.7), waves(1, 40, 2, 6, phase=1.9)
    positions = torch.cat([torch.arange(26), torch.arange(14)])[None]
    state = tuple(torch.zeros(1, *shape) for shape, _ in layout.state(2, 6).values())
    found, _ = slot_memory_cpp(q, k, v, positions, layout, rotary, state=state)
    wide = [t.double() for t in (q, k, v)]
    wanted, _ = slot_memory_naive(*wide, positions, layout, rotary, state=tuple(t.double() for t in state))
    error = row_error(found, wanted)
    if not error <= 2e-5:
        raise SelfCheckError(f"self-check failed: the output is off by {error:.1e}, want 2e-05")


@register(
    "slot_memory",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    lacks=["gradients"],
    available=why_not,
    check=_check,
)
def slot_memory_cpp(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: MemoryLayout,
    rotary: Rotary,
    *,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Arguments and results of :func:`xarch.kernels.slot_memory`; always with the state."""
    if island_dtype(q_BLHE, k_BLKE, v_BLKE, *state) == torch.float64 or q_BLHE.numel() == 0:
        return slot_memory_plain(q_BLHE, k_BLKE, v_BLKE, positions_BL, layout, rotary, state=state)
    held = dict(zip(layout.state(*k_BLKE.shape[2:]), state, strict=True))
    with torch.no_grad():
        y_BLHE = _forward(q_BLHE, k_BLKE, v_BLKE, positions_BL, layout, rotary, held)
    return y_BLHE.to(q_BLHE.dtype), tuple(held.values())


def _forward(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: MemoryLayout,
    rotary: Rotary,
    held: dict[str, Tensor],
) -> Tensor:
    """Return the heads' outputs, and replace the tensors in ``held``."""
    batch, length, heads, width = q_BLHE.shape
    sinks = layout.sinks
    new = _arrived(k_BLKE, v_BLKE, layout)
    # Sinks before, window before, and new tokens [B, K, S + W + L, ...].
    joined = {name: torch.cat([held[name].float(), t.transpose(1, 2)], 2) for name, t in new.items()}
    rows = {name: joined[f"exact_{name}"] for name in ("keys", "values")}
    if layout.exact == "int8":
        rows = {name: codes * joined[f"{name[:-1]}_scales"][..., None] for name, codes in rows.items()}
    slots = {name: t.float().clone().contiguous() for name, t in held.items() if name.startswith("slot_")}
    if layout.slots:
        importance_BKJ = joined["exact_importance"][:, :, sinks:].contiguous()
    else:
        importance_BKJ = torch.zeros(joined["exact_keys"][:, :, sinks:].shape[:3])
    y_BLHE = q_BLHE.new_empty(q_BLHE.shape, dtype=torch.float32)
    tensors = {
        "q": q_BLHE.float().contiguous(),
        **{name: t[:, :, sinks:].contiguous() for name, t in rows.items()},
        **{f"sink_{name}": t[:, :, :sinks].contiguous() for name, t in rows.items()},
        "importance": importance_BKJ,
        **slots,
        "positions": positions_BL.to(torch.int64).contiguous(),
        "frequencies": torch.tensor(rotary.frequencies, dtype=torch.float64),
        "y": y_BLHE,
    }
    call = _Call(
        batch=batch,
        length=length,
        heads=heads,
        kv_heads=k_BLKE.shape[2],
        width=width,
        pairs=len(rotary.frequencies),
        sinks=sinks,
        window=layout.window,
        slots=layout.slots,
        age=layout.age,
        half=layout.stored == "float16",
        threads=torch.get_num_threads(),
        scale=rotary.scale,
        softcap=rotary.softcap or 0.0,
        gain=rotary.gain,
        decay=layout.decay,
        **{name: t.data_ptr() for name, t in tensors.items()},
    )
    _library().slot_memory_forward(call)
    if layout.slots:
        joined["exact_importance"] = torch.cat([joined["exact_importance"][:, :, :sinks], importance_BKJ], 2)
    held |= {name: _kept(t, positions_BL, layout).to(held[name].dtype) for name, t in joined.items()}
    held |= {name: t.to(held[name].dtype) for name, t in slots.items()}
    return y_BLHE


def _arrived(k_BLKE: Tensor, v_BLKE: Tensor, layout: MemoryLayout) -> dict[str, Tensor]:
    """What the state stores of new tokens, as float32 [B, L, K, ...]."""
    made: dict[str, Tensor] = {}
    for name, new_BLKE in (("key", k_BLKE.float()), ("value", v_BLKE.float())):
        if layout.exact == "int8":
            scale_BLK1, new_BLKE = quantised(new_BLKE)
            made[f"{name}_scales"] = scale_BLK1[..., 0]
        made[f"exact_{name}s"] = new_BLKE.half().float() if layout.exact == "float16" else new_BLKE
    if layout.slots:
        made["exact_importance"] = torch.zeros(k_BLKE.shape[:3])
    return made


def _kept(joined_BKCx: Tensor, positions_BL: Tensor, layout: MemoryLayout) -> Tensor:
    """Sinks and window after the last token, of sinks and window before with new tokens."""
    sinks_BKSx = joined_BKCx[:, :, : layout.sinks].clone()
    for b, t in (positions_BL < layout.sinks).nonzero().tolist():
        sinks_BKSx[b, :, positions_BL[b, t]] = joined_BKCx[b, :, layout.sinks + layout.window + t]
    return torch.cat([sinks_BKSx, joined_BKCx[:, :, -layout.window :]], 2)
