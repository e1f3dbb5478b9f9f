"""The convolution in C++ for CPUs, float32 inside: inputs are read once, outputs written once.

Sums over tokens run in slabs of tokens that do not depend on the number of threads, added in order.

Legend: B batch, L tokens, C channels, K taps, J = K - 1, U slabs of tokens.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.causal_conv1d.naive import causal_conv1d_naive
from xarch.kernels.causal_conv1d.plain import causal_conv1d_plain
from xarch.kernels.causal_conv1d.window import final_state
from xarch.kernels.dispatch import register
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.native.tensors import call_of
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selfcheck import agree, waves

_SLAB, _MOST_SLABS = 256, 128
"""Tokens that one thread takes at a time, more where there would be more slabs than that."""


_SIZES = ("batch", "length", "channels", "taps", "slab", "threads", "x_batch", "x_token", "dy_batch", "dy_token")
_TENSORS = ("x", "dy", "weight", "bias", "history", "run", "y", "dx", "dhistory", "partial", "dweight")
_Call = call_of(_SIZES, _TENSORS)


@kernel("causal_conv1d", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    for function in (loaded.conv_forward, loaded.conv_backward):
        declare(function, ctypes.POINTER(_Call))


def _check(_: str) -> None:
    """Whole blocks and single tokens, a change of document, channels that fill no vector."""
    inputs = [waves(*shape, phase=i) for i, shape in enumerate([(2, 70, 37), (37, 4), (37,), (2, 37, 3)])]
    segments = (torch.arange(70) // 40).expand(2, -1)

    def run(function: Any) -> Any:
        def call(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor]:
            options = {"segment_ids_BL": segments, "return_final_state": False}
            return (function(x, weight, bias, initial_state_BCJ=state, **options)[0],)

        return call

    agree(run(causal_conv1d_cpp), run(causal_conv1d_naive), inputs, tolerance=1.5e-6)


@register(
    "causal_conv1d",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not,
    check=_check,
)
def causal_conv1d_cpp(
    x_BLC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None,
    *,
    initial_state_BCJ: Tensor | None,
    segment_ids_BL: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments and results of :func:`xarch.kernels.causal_conv1d`; the state is None unless asked for."""
    if island_dtype(x_BLC, weight_CK) == torch.float64 or x_BLC.numel() == 0:
        # Nothing to compute, or float64 weights.
        return causal_conv1d_plain(
            x_BLC,
            weight_CK,
            bias_C,
            initial_state_BCJ=initial_state_BCJ,
            segment_ids_BL=segment_ids_BL,
            return_final_state=return_final_state,
        )
    taps = weight_CK.shape[1]
    state_BCJ = final_state(x_BLC, initial_state_BCJ, taps, segment_ids_BL) if return_final_state else None
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    return conv_cpp_forward(x_BLC, weight_CK, bias_C, initial_state_BCJ, run_BL), state_BCJ


@torch.library.custom_op("xarch::causal_conv1d_cpp_forward", mutates_args=())
def conv_cpp_forward(
    x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, state_BCJ: Tensor | None, run_BL: Tensor | None
) -> Tensor:
    """y [B, L, C]."""
    y_BLC = x_BLC.new_empty(x_BLC.shape, dtype=torch.float32)
    bias = None if bias_C is None else bias_C.float().contiguous()
    _run("conv_forward", x_BLC, weight_CK, state_BCJ, run_BL, bias=bias, y=y_BLC)
    return y_BLC.to(x_BLC.dtype)


@conv_cpp_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, run: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("xarch::causal_conv1d_cpp_backward", mutates_args=())
def conv_cpp_backward(
    dy_BLC: Tensor, x_BLC: Tensor, weight_CK: Tensor, state_BCJ: Tensor | None, run_BL: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, and in float32 of the weight, the bias and the state (empty without one)."""
    batch, length, channels = x_BLC.shape
    taps = weight_CK.shape[1]
    dx_BLC = x_BLC.new_empty(x_BLC.shape, dtype=torch.float32)
    rows = 0 if state_BCJ is None else taps - 1
    dstate_BJC = dx_BLC.new_empty(batch, rows, channels)
    partial_UKC = dx_BLC.new_empty(batch * -(-length // _slab(batch, length)), taps + 1, channels)
    dweight_KC = dx_BLC.new_empty(taps + 1, channels)
    dy_BLC = _rows(dy_BLC)
    _run(
        "conv_backward",
        x_BLC,
        weight_CK,
        state_BCJ,
        run_BL,
        dy=dy_BLC,
        dx=dx_BLC,
        dhistory=dstate_BJC,
        partial=partial_UKC,
        dweight=dweight_KC,
    )
    # Results of an operator must not share memory.
    dweight_CK, dbias_C = dweight_KC[:-1].t().contiguous(), dweight_KC[-1].clone()
    return dx_BLC.to(x_BLC.dtype), dweight_CK, dbias_C, dstate_BJC.transpose(1, 2).contiguous()


@conv_cpp_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, state: Tensor | None, run: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels, taps = weight.shape
    shapes = [(channels, taps), (channels,), (x.shape[0], channels, 0 if state is None else taps - 1)]
    dweight, dbias, dstate = (x.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return x.new_empty(x.shape), dweight, dbias, dstate


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, state, run = inputs
    ctx.save_for_backward(x, weight, state, run)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, state, run = ctx.saved_tensors
    dx, dweight, dbias, dstate = conv_cpp_backward(dy, x, weight, state, run)
    dbias_or_none = None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype)
    return dx, dweight.to(weight.dtype), dbias_or_none, None if state is None else dstate.to(state.dtype), None


conv_cpp_forward.register_autograd(_backward, setup_context=_setup)


def _run(
    function: str, x: Tensor, weight: Tensor, state: Tensor | None, run: Tensor | None, **tensors: Tensor | None
) -> None:
    batch, length, channels = x.shape
    x, dy = _rows(x), tensors.get("dy")
    taps = weight.shape[1]
    dense: dict[str, Tensor | None] = {
        "weight": weight.float().t().contiguous(),
        # Without taps that reach back there is no state, though one of no columns may be given.
        "history": None if state is None or taps == 1 else state.float().transpose(1, 2).contiguous(),
        "run": None if run is None else run.contiguous(),
        **tensors,
    }
    call = _Call(
        batch=batch,
        length=length,
        channels=channels,
        taps=taps,
        slab=_slab(batch, length),
        threads=torch.get_num_threads(),
        x=x.data_ptr(),
        x_batch=x.stride(0),
        x_token=x.stride(1),
        **{name: t.data_ptr() for name, t in dense.items() if t is not None},
    )
    if dy is not None:
        call.dy_batch, call.dy_token = dy.stride(0), dy.stride(1)
    getattr(_library(), function)(call)


def _slab(batch: int, length: int) -> int:
    return max(_SLAB, -(-batch * length // _MOST_SLABS))


def _rows(t: Tensor) -> Tensor:
    t = t.float()
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()
