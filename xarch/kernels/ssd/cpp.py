"""SSD in C++ for CPUs, float32 inside: chunks whose tiles and states stay in the level-2 cache of a thread.

A call is split into sequences and heads, each computed by one thread in a fixed order, so results do not depend on the
number of threads. The forward pass keeps one state per chunk if there will be a backward pass. Formulas: README.md.

Legend: B batch, L tokens, H heads, G B/C groups, P value width, N state size, K chunks, S slices of a group's heads.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.native.tensors import Rows, call_of, dense, rows
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selfcheck import agree, waves
from xarch.kernels.ssd.naive import ssd_naive
from xarch.kernels.ssd.plain import ssd_plain

CHUNK = 64
"""Fastest of 32, 64 and 128 on an AVX-512 Xeon at N = P = 64 (see README.md)."""

_UNITS = 8
"""Up to 8 heads of a group share work as long as so many pieces of work are left for the threads."""


_SIZES = ("batch", "length", "heads", "groups", "width", "size", "chunk", "slice", "threads")
_STRIDED = ("x", "log_a", "B", "C", "dy")
_DENSE = ("D", "initial", "run", "y", "last", "states", "dlast", "dx", "dlog_a", "dB", "dC", "dD", "dinitial")
_Call = call_of(_SIZES, _DENSE, strided=_STRIDED)


@kernel("ssd", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    for function in (loaded.ssd_forward, loaded.ssd_backward):
        declare(function, ctypes.POINTER(_Call))


def _check(_: str) -> None:
    """4 chunks of the usual size and 13 small ones, the last partial; shared groups, documents, widths that fill no
    vector.
    """
    shapes = [(2, 200, 4, 19), (2, 200, 4), (2, 200, 2, 18), (2, 200, 2, 18), (4,), (2, 4, 19, 18)]
    inputs = [waves(*shape, phase=i) for i, shape in enumerate(shapes)]
    # Slow enough that a state lives through several chunks.
    inputs[1] = -0.02 * inputs[1].abs()
    segments = (torch.arange(200) // 150).expand(2, -1)

    def fast(*t: Tensor) -> list[Tensor]:
        return [o for chunk in (None, 16) for o in run(ssd_cpp, chunk, *t)]

    def truth(*t: Tensor) -> list[Tensor]:
        return 2 * [*run(ssd_naive, None, *t)]

    def run(function: Any, chunk: int | None, *t: Tensor) -> Any:
        return function(*t[:5], initial_state_BHPN=t[5], segment_ids_BL=segments, chunk_size=chunk)

    agree(fast, truth, inputs, tolerance=4e-5)


@register(
    "ssd",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not,
    check=_check,
)
def ssd_cpp(
    x_BLHP: Tensor,
    log_a_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    *,
    initial_state_BHPN: Tensor | None,
    segment_ids_BL: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.ssd`; the state is always returned."""
    operands = (x_BLHP, log_a_BLH, B_BLGN, C_BLGN, D_H, initial_state_BHPN)
    if island_dtype(*operands) == torch.float64 or 0 in x_BLHP.shape or B_BLGN.shape[-1] == 0:
        # Nothing to compute, or an operand other than x asks for float64.
        return ssd_plain(
            *operands[:5],
            initial_state_BHPN=initial_state_BHPN,
            segment_ids_BL=segment_ids_BL,
            chunk_size=chunk_size,
        )
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    chunk = min(chunk_size or CHUNK, x_BLHP.shape[1])
    y_BLHP, last_BHPN, _ = ssd_cpp_forward(*operands, run_BL, chunk, keep)
    return y_BLHP, last_BHPN


@torch.library.custom_op("xarch::ssd_cpp_forward", mutates_args=())
def ssd_cpp_forward(
    x_BLHP: Tensor,
    log_a_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    initial_state_BHPN: Tensor | None,
    run_BL: Tensor | None,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state after the last token, and with ``keep`` the state before each chunk [B, H, K, N, P]."""
    inputs = _Inputs(x_BLHP, log_a_BLH, B_BLGN, C_BLGN, D_H, run_BL, chunk)
    y_BLHP, last_BHPN, states_BHKNP = _outputs(x_BLHP, B_BLGN, chunk, keep, torch.float32)
    initial = None if initial_state_BHPN is None else dense(initial_state_BHPN)
    inputs.run("ssd_forward", initial=initial, y=y_BLHP, last=last_BHPN, states=states_BHKNP if keep else None)
    return y_BLHP.to(x_BLHP.dtype), last_BHPN, states_BHKNP


@ssd_cpp_forward.register_fake
def _(
    x: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    run: Tensor | None,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, B, chunk, keep, x.dtype)


@torch.library.custom_op("xarch::ssd_cpp_backward", mutates_args=())
def ssd_cpp_backward(
    dy_BLHP: Tensor,
    dlast_BHPN: Tensor | None,
    x_BLHP: Tensor,
    log_a_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    run_BL: Tensor | None,
    states_BHKNP: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, log_a, B, C, D (zeros without D) and the initial state, the last two in float32."""
    inputs = _Inputs(x_BLHP, log_a_BLH, B_BLGN, C_BLGN, D_H, run_BL, chunk)
    batch, length, heads, width = x_BLHP.shape
    groups, size = B_BLGN.shape[2:]
    dx_BLHP, dlog_a_BLH = x_BLHP.new_empty(x_BLHP.shape, dtype=torch.float32), _empty(x_BLHP, batch, length, heads)
    dB_SBLGN, dC_SBLGN = (_empty(x_BLHP, inputs.slices, batch, length, groups, size) for _ in range(2))
    dD_BH, dinitial_BHPN = _empty(x_BLHP, batch, heads), _empty(x_BLHP, batch, heads, width, size)
    inputs.run(
        "ssd_backward",
        dy=dy_BLHP,
        dlast=None if dlast_BHPN is None else dense(dlast_BHPN),
        states=states_BHKNP,
        dx=dx_BLHP,
        dlog_a=dlog_a_BLH,
        dB=dB_SBLGN,
        dC=dC_SBLGN,
        dD=dD_BH,
        dinitial=dinitial_BHPN,
    )
    dB_BLGN, dC_BLGN = (t[0] if len(t) == 1 else t.sum(0) for t in (dB_SBLGN, dC_SBLGN))
    found = (dx_BLHP.to(x_BLHP.dtype), dlog_a_BLH.to(log_a_BLH.dtype), dB_BLGN.to(B_BLGN.dtype))
    return *found, dC_BLGN.to(C_BLGN.dtype), dD_BH.sum(0), dinitial_BHPN


@ssd_cpp_backward.register_fake
def _(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    run: Tensor | None,
    states: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, _, heads, width = x.shape
    like = [t.new_empty(t.shape) for t in (x, log_a, B, C)]
    return *like, _empty(x, heads), _empty(x, batch, heads, width, B.shape[-1])  # type: ignore[return-value]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, log_a, B, C, D, initial, run, chunk, _ = inputs
    ctx.save_for_backward(x, log_a, B, C, D, run, output[2])
    ctx.chunk, ctx.initial_dtype = chunk, None if initial is None else initial.dtype
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, log_a, B, C, D, run, states = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(x)
    *found, dD, dinitial = ssd_cpp_backward(dy, dlast, x, log_a, B, C, D, run, states, ctx.chunk)
    return (
        *found,
        None if D is None else dD.to(D.dtype),
        None if ctx.initial_dtype is None else dinitial.to(ctx.initial_dtype),
        None,
        None,
        None,
    )


ssd_cpp_forward.register_autograd(_backward, setup_context=_setup)


class _Inputs:
    """The operands in float32, kept alive while C++ reads them."""

    def __init__(
        self,
        x_BLHP: Tensor,
        log_a_BLH: Tensor,
        B_BLGN: Tensor,
        C_BLGN: Tensor,
        D_H: Tensor | None,
        run_BL: Tensor | None,
        chunk: int,
    ) -> None:
        batch, length, heads, width = x_BLHP.shape
        groups, size = B_BLGN.shape[2:]
        ratio = heads // groups
        part = max((p for p in range(2, 9) if batch * groups * -(-ratio // p) >= _UNITS), default=1)
        part = min(part, ratio)
        self.slices = -(-ratio // part)
        self._sizes = (batch, length, heads, groups, width, size, chunk, part, torch.get_num_threads())
        self._rows = {"x": rows(x_BLHP), "B": rows(B_BLGN), "C": rows(C_BLGN), "log_a": log_a_BLH.float()}
        self._dense = {
            "D": None if D_H is None else dense(D_H),
            "run": None if run_BL is None else run_BL.contiguous(),
        }

    def run(self, function: str, *, dy: Tensor | None = None, **tensors: Tensor | None) -> None:
        strided = self._rows if dy is None else {**self._rows, "dy": rows(dy)}
        contiguous = {**self._dense, **tensors}
        call = _Call(
            *self._sizes,
            **{name: Rows.of(t) for name, t in strided.items()},
            **{name: t.data_ptr() for name, t in contiguous.items() if t is not None},
        )
        getattr(_library(), function)(call)


def _outputs(x: Tensor, B: Tensor, chunk: int, keep: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, width = x.shape
    size = B.shape[-1]
    kept = -(-length // chunk) if keep else 0
    y = x.new_empty(x.shape, dtype=dtype)
    return y, _empty(x, batch, heads, width, size), _empty(x, batch, heads, kept, size, width)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)
