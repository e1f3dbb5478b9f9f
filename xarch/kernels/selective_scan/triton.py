"""The selective scan in Triton kernels: parallel over tokens within a block, sequential over blocks.

Legend: B batch, D channels, L tokens, N state size, G B/C groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.gpu import TOLERANCE, why_not_triton
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selective_scan.naive import selective_scan_naive
from xarch.kernels.selective_scan.plain import selective_scan_plain
from xarch.kernels.selfcheck import agree, waves

LARGEST = 256
"""Larger states do not fit the registers of a program."""


@register(
    "selective_scan",
    "triton",
    priority=50,
    devices=["cuda"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not_triton,
    check=lambda device: check(selective_scan_triton, device),
)
def selective_scan_triton(
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
    """Arguments and results of :func:`xarch.kernels.selective_scan`; the state is always returned.

    Calls with a float64 operand, no element, or more than :data:`LARGEST` states per channel run in PyTorch.
    """
    wide = island_dtype(x_BDL, dt_BDL, A_DN, B_BGNL, C_BGNL, initial_state_BDN) == torch.float64
    if wide or x_BDL.numel() == 0 or not 1 <= A_DN.shape[1] <= LARGEST:
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
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL).int().contiguous()
    initial = None if initial_state_BDN is None else initial_state_BDN.float().contiguous()
    D_D, dt_bias_D = (None if t is None else t.contiguous() for t in (D_D, dt_bias_D))
    y, last, _ = torch.ops.xarch.selective_scan_triton_forward(
        x_BDL, dt_BDL, A_DN.float().contiguous(), B_BGNL, C_BGNL, D_D, z_BDL, dt_bias_D, initial, run_BL, dt_softplus
    )
    return y, last


@torch.library.custom_op(
    "xarch::selective_scan_triton_forward",
    mutates_args=(),
    schema="(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? initial,"
    " Tensor? run, bool softplus) -> (Tensor, Tensor, Tensor)",
)
def _forward(*args: Any) -> tuple[Tensor, ...]:
    from xarch.kernels.selective_scan import triton_launch

    return triton_launch.forward(*args)


@torch.library.custom_op(
    "xarch::selective_scan_triton_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor? dlast, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z,"
    " Tensor? bias, Tensor? run, Tensor states, bool softplus)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(*args: Any) -> tuple[Tensor, ...]:
    from xarch.kernels.selective_scan import triton_launch

    return triton_launch.backward(*args)


@_forward.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from xarch.kernels.selective_scan import triton_launch

    batch, channels, length = x.shape
    size = A.shape[1]
    last = x.new_empty(batch, channels, size, dtype=torch.float32)
    return x.new_empty(x.shape), last, last.new_empty(batch, channels, triton_launch.chunks_of(size, length), size)


@_backward.register_fake
def _(
    dy: Tensor, dlast: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, z: Any, bias: Any,
    run: Any, states: Tensor, softplus: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    channels = x.shape[1]
    return (
        x.new_empty(x.shape),
        dt.new_empty(dt.shape),
        A.new_empty(A.shape),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        states.new_empty(0 if D is None else channels),
        x.new_empty(0) if z is None else z.new_empty(z.shape),
        states.new_empty(0 if bias is None else channels),
        states.new_empty(x.shape[0], channels, A.shape[1]),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, initial, run, ctx.softplus = inputs
    ctx.save_for_backward(*operands, run, output[2])
    ctx.has_initial = initial is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, _, _, _, _, D, z, bias = ctx.saved_tensors[:8]
    dy = torch.zeros_like(x) if dy is None else dy
    dlast = None if dlast is None else dlast.contiguous()
    *found, dD, dz, dbias, dinitial = torch.ops.xarch.selective_scan_triton_backward(
        dy, dlast, *ctx.saved_tensors, ctx.softplus
    )
    dD = None if D is None else dD.to(D.dtype)
    dbias = None if bias is None else dbias.to(bias.dtype)
    return *found, dD, None if z is None else dz, dbias, dinitial if ctx.has_initial else None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def check(run: Callable[..., Any], device: str, *, plain: bool = False) -> None:
    """Compare a GPU backend with the naive one on a device type: several blocks, a shared group, a gate, documents.

    Args:
        plain: without documents and without gradients of the last state.

    Raises:
        SelfCheckError: they differ.
    """
    segments_BL = None if plain else (torch.arange(260, device=device) // 220)[None]

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def outputs(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Any:
            options = {"dt_bias_D": D, "dt_softplus": True, "initial_state_BDN": None, "segment_ids_BL": segments_BL}
            y, last = function(x, dt, -A.exp(), B, C, D, z, **options)
            return [y] if plain else [y, last]

        return outputs

    shapes = [(1, 4, 260), (1, 4, 260), (4, 5), (1, 1, 5, 260), (1, 1, 5, 260), (4,), (1, 4, 260)]
    operands = [waves(*shape, phase=i, device=device) for i, shape in enumerate(shapes)]
    agree(call(run), call(selective_scan_naive), operands, tolerance=TOLERANCE)
