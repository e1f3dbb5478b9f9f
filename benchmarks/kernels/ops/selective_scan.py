"""The selective scan of a Mamba-1 block: step sizes through softplus, skip and gate included.

Legend: B batch, L tokens, D channels, N state size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.case import Case
from benchmarks.kernels.contender import Contender, Inputs
from benchmarks.kernels.operation import Operation
from benchmarks.kernels.peers import mamba_ssm, parallel_scan, transformers_mamba
from benchmarks.kernels.work import Work

LONGEST_STEPWISE = 2048
TOKENS_LAST = {n: (0, 2, 1) for n in ("x", "dt", "B", "C", "z")}


def inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Initialised as a Mamba block: A = −1 … −N, step sizes from 0.001 to 0.1."""
    s, L = case.size, case.length

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    step = torch.exp(torch.linspace(-6.9, -2.3, s["D"]))
    return {
        "x": normal(s["B"], L, s["D"]),
        "dt": normal(s["B"], L, s["D"]) * 0.5,
        "A": -torch.arange(1, s["N"] + 1).float().expand(s["D"], -1).contiguous(),
        "B": normal(s["B"], L, s["N"]),
        "C": normal(s["B"], L, s["N"]),
        "D": torch.ones(s["D"]),
        "z": normal(s["B"], L, s["D"]),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
    }


def ours(i: Inputs, backend: str) -> Tensor:
    from xarch.kernels.selective_scan import selective_scan

    x, dt, B, C, z = (i[n].transpose(1, 2) for n in TOKENS_LAST)
    y = selective_scan(x, dt, i["A"], B, C, i["D"], z, dt_bias_D=i["dt_bias"], dt_softplus=True, backend=backend)
    assert isinstance(y, Tensor)
    return y.transpose(1, 2)


def too_long(case: Case) -> str | None:
    """A loop over slices writes a whole gradient per token: the time of its backward pass is quadratic."""
    return f"not measured above {LONGEST_STEPWISE} tokens" if case.length > LONGEST_STEPWISE else None


def work(case: Case, backward: bool) -> Work:
    """Per state cell: the decay's exponential, h = a h + Δ x B and y += h C; the backward pass recomputes h."""
    s, L = case.size, case.length
    tokens, cells = s["B"] * L * s["D"], s["B"] * L * s["D"] * s["N"]
    item = torch.finfo(getattr(torch, case.dtype)).bits / 8
    arrays, shared = (9, 6) if backward else (4, 2)
    exps = cells * (2 if backward else 1) + 2 * tokens
    return Work(
        bytes=item * (arrays * tokens + shared * s["B"] * L * s["N"]),
        flops=cells * (21 if backward else 6),
        exps=exps,
        matmul=False,
    )


OPERATION = Operation(
    name="selective_scan",
    shapes={
        "mamba1": {"B": 1, "D": 1024, "N": 16},
        "gpu:mamba1-2.8b": {"B": 4, "D": 5120, "N": 16},
    },
    inputs=inputs,
    leaves=("x", "dt", "A", "B", "C", "D", "z", "dt_bias"),
    ours=ours,
    peers=[
        Contender(
            "mamba_ssm.selective_scan_ref",
            mamba_ssm.selective_scan_ref,
            family="step by step",
            cannot=too_long,
            layout=TOKENS_LAST,
            returns=(0, 2, 1),
            packages=("mamba_ssm",),
        ),
        Contender(
            "transformers Mamba",
            transformers_mamba.mamba,
            cannot=too_long,
            layout=TOKENS_LAST,
            returns=(0, 2, 1),
            packages=("transformers",),
        ),
        Contender(
            "mamba_ssm.selective_scan_fn",
            mamba_ssm.selective_scan_cuda,
            family="mamba_ssm kernels",
            layout=TOKENS_LAST,
            returns=(0, 2, 1),
            packages=("mamba_ssm",),
            devices=("cuda",),
        ),
        *parallel_scan.contenders(),
    ],
    work=work,
    promised=(2048,),
    also=(512,),
    exact_length=256,
    keeps_float32=("A", "D", "dt_bias"),
    longest_naive=2048,
)
