"""The selective scan, the state-space mixer of Mamba-1 with one decay per channel and state.

Legend: B batch, D channels, L tokens, N state size, G B/C groups.
"""

from __future__ import annotations

from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.dispatch import select
from xarch.kernels.precision import without_autocast
from xarch.kernels.selective_scan import cpp, mamba_ssm, naive, plain, triton
from xarch.kernels.selective_scan.step import selective_scan_step

__all__ = ["cpp", "mamba_ssm", "naive", "plain", "selective_scan", "selective_scan_step", "triton"]


def selective_scan(
    x_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BGNL: Tensor,
    C_BGNL: Tensor,
    D_D: Tensor | None = None,
    z_BDL: Tensor | None = None,
    *,
    dt_bias_D: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state_BDN: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t and y_t = (h_t · C_t + D x_t) silu(z_t), h [N] per channel.

    The scan of Mamba (arXiv 2312.00752, algorithm 2) with the arguments of ``selective_scan_fn`` in mamba-ssm. Any
    strides; [B, L, D] memory seen through ``transpose(1, 2)`` needs no copy.

    Args:
        x_BDL: values.
        dt_BDL: step sizes, before bias and softplus if there are any.
        A_DN: log of the decay per unit of time, real, <= 0.
        B_BGNL, C_BGNL: input and output vectors, [B, N, L] for one group; channel d uses group ``d // (D // G)``.
        D_D: skip weight per channel, or None.
        z_BDL: gate, or None.
        dt_bias_D: added to the step sizes.
        dt_softplus: put the step sizes through softplus after the bias.
        initial_state_BDN: state before the first token; it belongs to the document of the first token.
        segment_ids_BL: document of each token; nothing flows across a change of id.
        return_final_state: also return the state after the last token.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        y [B, D, L] in the dtype of ``x_BDL``; with ``return_final_state`` also the state [B, D, N] in float32 (float64
        for float64 inputs).

    Raises:
        UsageError: shapes do not fit together, or the backend cannot run the call.
    """
    B, C = (t[:, None] if t.dim() == 3 else t for t in (B_BGNL, C_BGNL))
    _check(x_BDL, dt_BDL, A_DN, B, C, D_D, z_BDL, dt_bias_D, initial_state_BDN, segment_ids_BL)
    features = {"segment_ids"} if segment_ids_BL is not None else set()
    if initial_state_BDN is not None:
        features.add("initial_state")
    if return_final_state:
        features.add("final_state")
    chosen = select("selective_scan", x_BDL.device, x_BDL.dtype, features=features, backend=backend)
    with without_autocast(x_BDL.device):
        y_BDL, state_BDN = chosen.run(
            x_BDL,
            dt_BDL,
            A_DN,
            B,
            C,
            D_D,
            z_BDL,
            dt_bias_D=dt_bias_D,
            dt_softplus=dt_softplus,
            initial_state_BDN=initial_state_BDN,
            segment_ids_BL=segment_ids_BL,
        )
    return (y_BDL, state_BDN) if return_final_state else y_BDL


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    state: Tensor | None,
    segments: Tensor | None,
) -> None:
    if x.dim() != 3 or A.dim() != 2 or B.dim() != 4:
        raise UsageError(
            "selective_scan: want x [B, D, L], A [D, N] and B [B, N, L] or [B, G, N, L], "
            f"got {list(x.shape)}, {list(A.shape)} and {list(B.shape)}"
        )
    batch, channels, length = x.shape
    groups, size = B.shape[1], A.shape[1]
    wanted = {
        "dt": (dt, (batch, channels, length)),
        "A": (A, (channels, size)),
        "B": (B, (batch, groups, size, length)),
        "C": (C, (batch, groups, size, length)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "dt_bias": (bias, (channels,)),
        "initial_state": (state, (batch, channels, size)),
        "segment_ids": (segments, (batch, length)),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and tuple(value.shape) != shape:
            raise UsageError(
                f"selective_scan: {name} has shape {list(value.shape)}, want {list(shape)}; "
                f"x is {list(x.shape)}, A is {list(A.shape)}, B is {list(B.shape)}"
            )
    if groups < 1 or channels % groups:
        raise UsageError(f"selective_scan: {groups} B/C groups do not divide {channels} channels")
