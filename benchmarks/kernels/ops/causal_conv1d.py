"""The short filter of a Mamba-2 block, without activation.

Legend: B batch, L tokens, C channels, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.case import Case
from benchmarks.kernels.contender import Contender, Inputs
from benchmarks.kernels.operation import Operation
from benchmarks.kernels.peers import conv1d, transformers_mamba
from benchmarks.kernels.work import Work


def inputs(case: Case, generator: torch.Generator) -> Inputs:
    s = case.size
    return {
        "x": torch.randn(s["B"], case.length, s["C"], generator=generator),
        "weight": torch.randn(s["C"], s["K"], generator=generator) / s["K"] ** 0.5,
        "bias": torch.randn(s["C"], generator=generator),
    }


def ours(i: Inputs, backend: str) -> Tensor:
    from xarch.kernels import causal_conv1d

    y = causal_conv1d(i["x"], i["weight"], i["bias"], backend=backend)
    assert isinstance(y, Tensor)
    return y


def work(case: Case, backward: bool) -> Work:
    s = case.size
    cells = s["B"] * case.length * s["C"]
    item = torch.finfo(getattr(torch, case.dtype)).bits / 8
    arrays, flops = (5, 6) if backward else (2, 2)
    return Work(bytes=item * arrays * cells, flops=flops * s["K"] * cells, exps=0, matmul=False)


OPERATION = Operation(
    name="causal_conv1d",
    shapes={
        "mamba2-130m": {"B": 1, "C": 1792, "K": 4},
        "gpu:mamba2-2.7b": {"B": 4, "C": 5376, "K": 4},
    },
    inputs=inputs,
    leaves=("x", "weight", "bias"),
    ours=ours,
    peers=[
        Contender("torch conv1d, depthwise, tokens last", conv1d.plain, layout={"x": (0, 2, 1)}, returns=(0, 2, 1)),
        Contender(
            "transformers causal_conv1d_fn",
            transformers_mamba.conv1d,
            layout={"x": (0, 2, 1)},
            returns=(0, 2, 1),
            packages=("transformers",),
        ),
        Contender(
            "causal_conv1d.causal_conv1d_fn",
            conv1d.cuda,
            family="mamba_ssm kernels",
            layout={"x": (0, 2, 1)},
            returns=(0, 2, 1),
            packages=("causal_conv1d",),
            devices=("cuda",),
        ),
    ],
    work=work,
    exact_length=512,
)
