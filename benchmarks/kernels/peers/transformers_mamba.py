"""The plain-PyTorch paths that transformers runs on a CPU for Mamba and Mamba-2.

transformers puts a function of mamba_ssm or causal_conv1d in their place where it can be imported, also on a machine
that cannot run it; unwrapping takes its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor

from benchmarks.kernels.contender import Inputs


def mamba(i: Inputs) -> Tensor:
    """The recurrence token by token."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    x, dt, A, B, C, D, z, bias = (i[n] for n in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias"))
    return inspect.unwrap(mamba_selective_scan)(x, dt, A, B, C, D, z, bias, delta_softplus=True)


def mamba2(chunk: int) -> Callable[[Inputs], Tensor]:
    def scan(i: Inputs) -> Tensor:
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

        return inspect.unwrap(mamba2_chunk_scan)(i["x"], i["dt"], i["A"], i["B"], i["C"], chunk)

    return scan


def conv1d(i: Inputs) -> Tensor:
    from transformers.models.mamba2.modeling_mamba2 import causal_conv1d_fn

    return inspect.unwrap(causal_conv1d_fn)(i["x"], i["weight"], i["bias"])
