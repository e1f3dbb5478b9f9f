"""The selective scan in C++ for CPUs, float32 inside: each input is read once and each result written once.

Channels fill the lanes of a vector, so that no sum over states leaves its lane, and the states stay in registers. The
backward pass keeps the inputs and one state per chunk. Sums over channels run in blocks that do not depend on the
number of threads, added in order.

Legend: B batch, D channels, L tokens, N state size, G B/C groups, K blocks of channels, T chunks, W lanes.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selective_scan.naive import selective_scan_naive
from xarch.kernels.selective_scan.plain import selective_scan_plain
from xarch.kernels.selfcheck import agree


class _Sequence(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((n, ctypes.c_int64) for n in ("of_batch", "of_channel", "of_token"))]


class _Problem(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "channels", "length", "states", "groups", "softplus", "threads")),
        *((n, _Sequence) for n in ("x", "dt", "z")),
        *((n, ctypes.c_void_p) for n in ("A", "B", "C", "D", "bias", "initial", "reset")),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [
        *((n, _Sequence) for n in ("out", "x", "dt", "z")),
        *((n, ctypes.c_void_p) for n in ("last", "A", "B", "C", "D", "bias", "initial")),
    ]


@kernel("selective_scan", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    for function in (loaded.selective_scan_lanes, loaded.selective_scan_chunk):
        function.argtypes, function.restype = [], ctypes.c_int64
    pointer = ctypes.POINTER
    address = ctypes.c_void_p
    declare(loaded.selective_scan_forward, pointer(_Problem), pointer(_Sequence), address, address)
    declare(loaded.selective_scan_backward, pointer(_Problem), pointer(_Gradients), address)


def _check(_: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def run(function: Any) -> Any:
        def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, h: Tensor) -> Any:
            options = {"dt_bias_D": D, "dt_softplus": True, "initial_state_BDN": h, "segment_ids_BL": segments}
            return function(x, dt, -A.exp(), B, C, D, z, **options)

        return call

    segments = (torch.arange(200) // 150).expand(2, -1)
    # Step sizes around 0.02 let a state live through several of the four chunks.
    operands = [randn(2, 18, 200), randn(2, 18, 200) - 4, randn(18, 17), randn(2, 1, 17, 200), randn(2, 1, 17, 200)]
    operands += [randn(18), randn(2, 18, 200), randn(2, 18, 17)]
    agree(run(selective_scan_cpp), run(selective_scan_naive), operands, tolerance=6e-6)


@register(
    "selective_scan",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not,
    check=_check,
)
def selective_scan_cpp(
    x_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BGNL: Tensor,
    C_BGNL: Tensor,
    D_D: Tensor | None,
    z_BDL: Tensor | None,
    *,
    dt_bias_D: Tensor | None,
    dt_softplus: bool,
    initial_state_BDN: Tensor | None,
    segment_ids_BL: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.selective_scan`; the state is always returned."""
    wide = island_dtype(x_BDL, dt_BDL, A_DN, B_BGNL, C_BGNL, initial_state_BDN) == torch.float64
    if wide or x_BDL.numel() == 0 or A_DN.numel() == 0:
        # Nothing to compute, or float64 among the other operands.
        return selective_scan_plain(
            x_BDL,
            dt_BDL,
            A_DN,
            B_BGNL,
            C_BGNL,
            D_D,
            z_BDL,
            dt_bias_D=dt_bias_D,
            dt_softplus=dt_softplus,
            initial_state_BDN=initial_state_BDN,
            segment_ids_BL=segment_ids_BL,
        )
    reset_BL = None
    if segment_ids_BL is not None:
        run_BL = runs(segment_ids_BL)
        reset_BL = torch.zeros_like(run_BL, dtype=torch.uint8)
        reset_BL[:, 1:] = run_BL[:, 1:] != run_BL[:, :-1]
    # Casts outside of the operator have their own gradients, so the operator itself is float32 only.
    x, dt, A, B, C, D, z, bias, initial = (
        None if t is None else t.float()
        for t in (x_BDL, dt_BDL, A_DN, B_BGNL, C_BGNL, D_D, z_BDL, dt_bias_D, initial_state_BDN)
    )
    operands = (x, dt, A, B, C, D, z, bias, initial)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    y_BDL, last_BDN, _ = scan_cpp_forward(*operands, reset_BL, dt_softplus, keep)
    return y_BDL.to(x_BDL.dtype), last_BDN


@torch.library.custom_op("xarch::selective_scan_cpp_forward", mutates_args=())
def scan_cpp_forward(
    x_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BGNL: Tensor,
    C_BGNL: Tensor,
    D_D: Tensor | None,
    z_BDL: Tensor | None,
    bias_D: Tensor | None,
    initial_BDN: Tensor | None,
    reset_BL: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, D, L], the last state [B, D, N] and, with ``keep``, the states before each chunk [B·G·K, T, N, W]."""
    library = _library()
    problem, alive = _problem(x_BDL, dt_BDL, A_DN, B_BGNL, C_BGNL, D_D, z_BDL, bias_D, initial_BDN, reset_BL, softplus)
    y_BDL, last_BDN, kept = _fresh(x_BDL, A_DN, B_BGNL, keep)
    library.selective_scan_forward(problem, _sequence(y_BDL), last_BDN.data_ptr(), kept.data_ptr() if keep else None)
    del alive
    return y_BDL, last_BDN, kept


@scan_cpp_forward.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fresh(x, A, B, keep)


@torch.library.custom_op("xarch::selective_scan_cpp_backward", mutates_args=())
def scan_cpp_backward(
    dy_BDL: Tensor,
    dlast_BDN: Tensor | None,
    x_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BGNL: Tensor,
    C_BGNL: Tensor,
    D_D: Tensor | None,
    z_BDL: Tensor | None,
    bias_D: Tensor | None,
    reset_BL: Tensor | None,
    kept: Tensor,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, z (empty without one), bias and the initial state."""
    problem, alive = _problem(x_BDL, dt_BDL, A_DN, B_BGNL, C_BGNL, D_D, z_BDL, bias_D, None, reset_BL, softplus)
    dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial = _fresh_gradients(x_BDL, dt_BDL, A_DN, B_BGNL, z_BDL)
    batch = x_BDL.shape[0]
    dA_BDN, dD_BD, dbias_BD = (t.new_empty(batch, *t.shape) for t in (dA, dD, dbias))
    dy, last = _strided(dy_BDL), None if dlast_BDN is None else dlast_BDN.float().contiguous()
    pointers = {"A": dA_BDN, "B": dB, "C": dC, "D": dD_BD, "bias": dbias_BD, "initial": dinitial, "last": last}
    gradients = _Gradients(
        out=_sequence(dy),
        x=_sequence(dx),
        dt=_sequence(ddt),
        z=_Sequence() if z_BDL is None else _sequence(dz),
        **{name: t.data_ptr() for name, t in pointers.items() if t is not None},
    )
    _library().selective_scan_backward(problem, gradients, kept.data_ptr())
    del alive
    torch.sum(dA_BDN, 0, out=dA)
    torch.sum(dD_BD, 0, out=dD)
    torch.sum(dbias_BD, 0, out=dbias)
    return dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial


@scan_cpp_backward.register_fake
def _(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    reset: Tensor | None,
    kept: Tensor,
    softplus: bool,
) -> tuple[Tensor, ...]:
    return _fresh_gradients(x, dt, A, B, z)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, dt, A, B, C, D, z, bias, initial, reset, ctx.softplus, _ = inputs
    ctx.save_for_backward(x, dt, A, B, C, D, z, bias, initial, reset, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, dt, A, B, C, D, z, bias, initial, reset, kept = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial = scan_cpp_backward(
        dy, dlast, x, dt, A, B, C, D, z, bias, reset, kept, ctx.softplus
    )
    optional = [None if t is None else g for t, g in ((D, dD), (z, dz), (bias, dbias), (initial, dinitial))]
    return dx, ddt, dA, dB, dC, *optional, None, None, None


scan_cpp_forward.register_autograd(_backward, setup_context=_setup)


def _fresh(x: Tensor, A: Tensor, B: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = x.shape
    groups, size = B.shape[1], A.shape[1]
    lanes, chunk = _library().selective_scan_lanes(), _library().selective_scan_chunk()
    blocks = -(-(channels // groups) // lanes)
    rows = batch * groups * blocks if keep else 0
    kept = x.new_empty(rows, -(-length // chunk), size, lanes)
    return _like(x), x.new_empty(batch, channels, size), kept


def _fresh_gradients(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, z: Tensor | None) -> tuple[Tensor, ...]:
    batch, channels, _ = x.shape
    dB, dC = x.new_empty(B.shape), x.new_empty(B.shape)
    dz = x.new_empty(0) if z is None else _like(z)
    dD, dbias = x.new_empty(channels), x.new_empty(channels)
    return _like(x), _like(dt), x.new_empty(A.shape), dB, dC, dD, dz, dbias, x.new_empty(batch, *A.shape)


def _like(t_BDL: Tensor) -> Tensor:
    """Fresh memory with the channels or the tokens side by side, as they are in ``t_BDL``."""
    batch, channels, length = t_BDL.shape
    if _channels_dense(t_BDL):
        return t_BDL.new_empty(batch, length, channels).transpose(1, 2)
    return t_BDL.new_empty(batch, channels, length)


def _channels_dense(t_BDL: Tensor) -> bool:
    return t_BDL.stride(1) == 1 and t_BDL.stride(2) != 1


def _strided(t_BDL: Tensor) -> Tensor:
    """The tensor itself if channels or tokens lie side by side in it, else a copy."""
    t = t_BDL.float()
    return t if 1 in t.stride()[1:] else t.contiguous()


def _sequence(t_BDL: Tensor) -> _Sequence:
    return _Sequence(t_BDL.data_ptr(), *t_BDL.stride())


def _problem(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    softplus: bool,
) -> tuple[_Problem, list[Tensor]]:
    """The problem, and the tensors that must live as long as it does."""
    batch, channels, length = x.shape
    sequences = {n: _strided(t) for n, t in (("x", x), ("dt", dt), ("z", z)) if t is not None}
    operands = {"A": A, "B": B, "C": C, "D": D, "bias": bias, "initial": initial, "reset": reset}
    dense = {n: t.contiguous() for n, t in operands.items() if t is not None}
    problem = _Problem(
        batch=batch,
        channels=channels,
        length=length,
        states=A.shape[1],
        groups=B.shape[1],
        softplus=softplus,
        threads=torch.get_num_threads(),
        **{n: _sequence(t) for n, t in sequences.items()},
        **{n: t.data_ptr() for n, t in dense.items()},
    )
    return problem, [*sequences.values(), *dense.values()]
