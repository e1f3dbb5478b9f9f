"""The memory in C++ for CPUs, float32 inside: a job is one key/value head of one sequence. Without gradients.

Legend: B batch, L tokens, H heads, K key/value heads, E head width, R longest window, S sinks, M slots of all heads.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary
from xarch.kernels.dispatch import register
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.precision import island_dtype
from xarch.kernels.selfcheck import SelfCheckError, row_error, waves
from xarch.kernels.slot_memory.layout import FACTS, MemoryLayout
from xarch.kernels.slot_memory.naive import slot_memory_naive
from xarch.kernels.slot_memory.plain import slot_memory_plain
from xarch.kernels.slot_memory.step import quantised

_SIZES = (
    "batch", "length", "heads", "kv_heads", "width", "pairs", "sinks", "reach", "slot_total", "age", "half", "evict",
    "threads",
)  # fmt: skip
_NUMBERS = ("scale", "softcap", "gain", "decay", "cap")
_TENSORS = (
    "q", "keys", "values", "importance", "sink_keys", "sink_values", "slot_keys", "slot_values", "slot_facts",
    "positions", "windows", "slots", "slot_starts", "frequencies", "y",
)  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in _SIZES),
        *((n, ctypes.c_double) for n in _NUMBERS),
        *((n, ctypes.c_void_p) for n in _TENSORS),
    ]


@kernel("slot_memory", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    declare(loaded.slot_memory_forward, ctypes.POINTER(_Call))


def _check(_: str) -> None:
    """Two heads of unlike sizes, merges and a second document."""
    layout = MemoryLayout(sinks=2, windows=(5, 3), slots=(3, 4))
    rotary = Rotary((1.0, 0.3), scale=0.5)
    q, k, v = waves(1, 40, 4, 6, phase=0.1), waves(1, 40, 2, 6, phase=0.7), waves(1, 40, 2, 6, phase=1.9)
    positions = torch.cat([torch.arange(26), torch.arange(14)])[None]
    state = tuple(torch.zeros(1, *shape) for shape, _ in layout.state(6).values())
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
    lacks=["gradients", "tables"],
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
    with torch.no_grad():
        return _Run(layout, q_BLHE.shape[-1], state).forward(q_BLHE, k_BLKE, v_BLKE, positions_BL, rotary)


class _Run:
    """One call: the exact entries before it and the new tokens side by side, longest window first."""

    def __init__(self, layout: MemoryLayout, width: int, state: tuple[Tensor, ...]) -> None:
        self.layout, self.width = layout, width
        self.held = dict(zip(layout.state(width), state, strict=True))
        self.reach = max(layout.windows)

    def forward(
        self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, positions_BL: Tensor, rotary: Rotary
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        layout, held = self.layout, self.held
        batch, length, heads, width = q_BLHE.shape
        total = layout.slot_total
        entries = {"keys": self._stored(k_BLKE, "key"), "values": self._stored(v_BLKE, "value")}
        codes = {name: self._joined(held[f"exact_{name}"].float(), code) for name, (code, _) in entries.items()}
        scales = {name: self._scales(name, scale) for name, (_, scale) in entries.items()}
        rows = {name: (codes[name] * scales[name] if name in scales else codes[name]) for name in entries}
        importance = self._joined(self._fact("importance"), q_BLHE.new_zeros(batch, length, layout.heads, 1).float())
        sinks = {name: self._sinks(self._scaled(name)) for name in entries}
        slots = {
            name: held[f"slot_{name}"].float().clone().contiguous() if total else q_BLHE.new_zeros(0).float()
            for name in ("keys", "values", "facts")
        }
        y_BLHE = q_BLHE.new_empty(q_BLHE.shape, dtype=torch.float32)
        tensors = {
            "q": q_BLHE.float().contiguous(),
            "keys": rows["keys"].contiguous(),
            "values": rows["values"].contiguous(),
            "importance": importance.contiguous(),
            "sink_keys": sinks["keys"],
            "sink_values": sinks["values"],
            **{f"slot_{name}": t for name, t in slots.items()},
            "positions": positions_BL.to(torch.int64).contiguous(),
            "windows": torch.tensor(layout.windows),
            "slots": torch.tensor(layout.slots),
            "slot_starts": torch.tensor(layout.slot_starts),
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
            sinks=layout.sinks,
            reach=self.reach,
            slot_total=total,
            age=layout.age,
            half=layout.stored == "float16",
            evict=layout.write == "evict",
            threads=torch.get_num_threads(),
            scale=rotary.scale,
            softcap=rotary.softcap or 0.0,
            gain=rotary.gain,
            decay=layout.decay,
            cap=layout.cap,
            **{name: t.data_ptr() for name, t in tensors.items()},
        )
        _library().slot_memory_forward(call)
        facts = {"importance": tensors["importance"]}
        facts |= {f"{name[:-1]}_scale": scale for name, scale in scales.items()}
        after = {f"exact_{name}": self._kept(name, codes[name], positions_BL) for name in entries}
        if layout.exact_facts:
            named = [self._kept_fact(n, facts[n], positions_BL) for n in layout.exact_facts]
            after["exact_facts"] = torch.stack(named, 1)
        if total:
            after |= {f"slot_{name}": t for name, t in slots.items()}
        assert len(FACTS) == 4
        return y_BLHE.to(q_BLHE.dtype), tuple(after[n].to(t.dtype) for n, t in held.items())

    def _stored(self, new_BLKE: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
        """What is stored of new keys or values, as float32, and their scales."""
        if self.layout.exact == "int8":
            scale_BLK1, code_BLKE = quantised(new_BLKE.float())
            return code_BLKE, scale_BLK1
        return (new_BLKE.half() if self.layout.exact == "float16" else new_BLKE).float(), None

    def _joined(self, pool_BPX: Tensor, new_BLKX: Tensor) -> Tensor:
        """Windows, filled up to the longest, and new tokens [B, K, R + L, X]."""
        batch, length, _, width = new_BLKX.shape
        joined_BKRX = pool_BPX.new_zeros(batch, self.layout.heads, self.reach + length, width)
        for j, (start, size) in enumerate(zip(self.layout.window_starts, self.layout.windows, strict=True)):
            joined_BKRX[:, j, self.reach - size : self.reach] = pool_BPX[:, start : start + size]
        joined_BKRX[:, :, self.reach :] = new_BLKX.transpose(1, 2)
        return joined_BKRX

    def _fact(self, name: str) -> Tensor:
        """One row of the exact entries' facts [B, P, 1], zero without it."""
        if name not in self.layout.exact_facts:
            keys_BPE = self.held["exact_keys"]
            return torch.zeros(*keys_BPE.shape[:2], 1)
        return self.held["exact_facts"][:, self.layout.exact_facts.index(name), :, None].float()

    def _scales(self, name: str, scale_BLK1: Tensor | None) -> Tensor:
        one = torch.ones(1)
        return one if scale_BLK1 is None else self._joined(self._fact(f"{name[:-1]}_scale"), scale_BLK1)

    def _scaled(self, name: str) -> Tensor:
        pool_BPE = self.held[f"exact_{name}"].float()
        return pool_BPE * self._fact(f"{name[:-1]}_scale") if self.layout.exact == "int8" else pool_BPE

    def _sinks(self, pool_BPX: Tensor) -> Tensor:
        sinks = self.layout.heads * self.layout.sinks
        return pool_BPX[:, :sinks].clone().contiguous()

    def _kept(self, name: str, joined_BKRX: Tensor, positions_BL: Tensor) -> Tensor:
        """The exact entries after the last token, as stored."""
        return self._moved(self.held[f"exact_{name}"].float(), joined_BKRX, positions_BL)

    def _kept_fact(self, name: str, joined_BKR1: Tensor, positions_BL: Tensor) -> Tensor:
        return self._moved(self._fact(name), joined_BKR1, positions_BL)[:, :, 0]

    def _moved(self, pool_BPX: Tensor, joined_BKRX: Tensor, positions_BL: Tensor) -> Tensor:
        sinks, end = self.layout.sinks, joined_BKRX.shape[2]
        parts = [pool_BPX[:, : self.layout.heads * sinks].unflatten(1, (self.layout.heads, sinks)).clone()]
        for place in range(sinks):
            for b, t in (positions_BL == place).nonzero().tolist():
                parts[0][b, :, place] = joined_BKRX[b, :, self.reach + t]
        parts[0] = parts[0].flatten(1, 2)
        parts += [joined_BKRX[:, j, end - size :] for j, size in enumerate(self.layout.windows)]
        return torch.cat(parts, 1)
