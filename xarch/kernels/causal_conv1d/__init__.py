"""Causal depthwise convolution over tokens, the short filter in front of a state-space mixer.

Legend: B batch, L tokens, C channels, K taps, J = K - 1.
"""

from __future__ import annotations

from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.causal_conv1d import cpp, mamba_ssm, naive, plain, triton
from xarch.kernels.causal_conv1d.step import causal_conv1d_step
from xarch.kernels.dispatch import select
from xarch.kernels.precision import without_autocast

__all__ = ["causal_conv1d", "causal_conv1d_step", "cpp", "mamba_ssm", "naive", "plain", "triton"]


def causal_conv1d(
    x_BLC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None = None,
    *,
    initial_state_BCJ: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y[t, c] = bias[c] + sum_k weight[c, k] x[t - K + 1 + k, c], with no activation.

    Args:
        x_BLC: inputs.
        weight_CK: taps, the last one meets the current token.
        bias_C: bias, or None.
        initial_state_BCJ: the last K - 1 inputs before the first token, oldest first (zeros if None); they belong to
            the document of the first token.
        segment_ids_BL: document of each token; no tap reaches across a change of id.
        return_final_state: also return the inputs that the next token will need.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        y [B, L, C] in the dtype of ``x_BLC``, computed in float32 or wider; with ``return_final_state`` also the last
        K - 1 inputs [B, C, J], zero where they belong to another document than the last token.

    Raises:
        UsageError: shapes do not fit together, or the backend cannot run the call.
    """
    _check(x_BLC, weight_CK, bias_C, initial_state_BCJ, segment_ids_BL)
    features = {"segment_ids"} if segment_ids_BL is not None else set()
    if initial_state_BCJ is not None:
        features.add("initial_state")
    if return_final_state:
        features.add("final_state")
    chosen = select("causal_conv1d", x_BLC.device, x_BLC.dtype, features=features, backend=backend)
    with without_autocast(x_BLC.device):
        y_BLC, state_BCJ = chosen.run(
            x_BLC,
            weight_CK,
            bias_C,
            initial_state_BCJ=initial_state_BCJ,
            segment_ids_BL=segment_ids_BL,
            return_final_state=return_final_state,
        )
    return (y_BLC, state_BCJ) if return_final_state else y_BLC


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, segments: Tensor | None) -> None:
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[1] < 1:
        raise UsageError(
            "causal_conv1d: want x [B, L, C] and weight [C, K] with K >= 1, "
            f"got {list(x.shape)} and {list(weight.shape)}"
        )
    batch, length, channels = x.shape
    taps = weight.shape[1]
    wanted = {
        "weight": (weight, (channels, taps)),
        "bias": (bias, (channels,)),
        "initial_state": (state, (batch, channels, taps - 1)),
        "segment_ids": (segments, (batch, length)),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and tuple(value.shape) != shape:
            raise UsageError(
                f"causal_conv1d: {name} has shape {list(value.shape)}, want {list(shape)}; "
                f"x is {list(x.shape)}, weight {list(weight.shape)}"
            )
