"""The plain-PyTorch paths that transformers runs on a CPU for Mamba and Mamba-2."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.kernels.contender import Inputs


def mamba(i: Inputs) -> Tensor:
    """The recurrence token by token."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan as run

    x, dt, A, B, C, D, z, bias = (i[n] for n in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias"))
    return run(x, dt, A, B, C, D, z, bias, delta_softplus=True)


def mamba2(chunk: int) -> Callable[[Inputs], Tensor]:
    def scan(i: Inputs) -> Tensor:
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan as run

        return run(i["x"], i["dt"], i["A"], i["B"], i["C"], chunk)

    return scan


def conv1d(i: Inputs) -> Tensor:
    from transformers.models.mamba2.modeling_mamba2 import causal_conv1d_fn as run

    return run(i["x"], i["weight"], i["bias"])
