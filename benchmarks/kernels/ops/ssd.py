"""SSD as Mamba-2 calls it: values times step sizes, one decay rate per head.

Legend: B batch, L tokens, H heads, P value width, G B/C groups, N state size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.case import Case
from benchmarks.kernels.contender import Contender, Inputs
from benchmarks.kernels.operation import Operation
from benchmarks.kernels.peers import mamba_ssm, scan_lite, transformers_mamba
from benchmarks.kernels.work import Work

CHUNK = 64
"""Chunk of the least work; the optimum lies near the state size."""


def inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x, dt > 0, A < 0, B and C, with half-lives from a few to some thousand tokens as Mamba-2 starts with."""
    s, L = case.size, case.length

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": normal(s["B"], L, s["H"], s["P"]),
        "dt": F.softplus(normal(s["B"], L, s["H"]) - 4),
        "A": -torch.linspace(1, 16, s["H"]),
        "B": normal(s["B"], L, s["G"], s["N"]) / s["N"] ** 0.5,
        "C": normal(s["B"], L, s["G"], s["N"]),
    }


def ours(i: Inputs, backend: str) -> Tensor:
    from xarch.kernels import ssd

    y = ssd((i["x"] * i["dt"][..., None]).to(i["x"].dtype), i["dt"] * i["A"], i["B"], i["C"], backend=backend)
    assert isinstance(y, Tensor)
    return y


def work(case: Case, backward: bool) -> Work:
    """Chunks of :data:`CHUNK`, only the lower triangle inside them, C Bᵀ once per group."""
    s, L = case.size, case.length
    width, item = s["P"], torch.finfo(getattr(torch, case.dtype)).bits / 8
    group, head = s["B"] * L * s["G"], s["B"] * L * s["H"]
    flops = group * CHUNK * s["N"] + head * CHUNK * width + 4 * head * s["N"] * width
    moved = item * (2 * head * width + 2 * group * s["N"]) + 4 * head
    exps = head * CHUNK / 2
    if backward:
        flops += group * CHUNK * 3 * s["N"] + head * CHUNK * 2 * width + 8 * head * s["N"] * width
        moved += item * (3 * head * width + 4 * group * s["N"]) + 8 * head
        exps *= 2
    return Work(bytes=moved, flops=flops, exps=exps, matmul=True)


OPERATION = Operation(
    name="ssd",
    shapes={
        "mamba2-130m": {"B": 1, "H": 24, "P": 64, "G": 1, "N": 128},
        "dm2-smollm2-135m": {"B": 1, "H": 9, "P": 64, "G": 9, "N": 64},
        "gpu:dm2-phi-1.5": {"B": 1, "H": 32, "P": 64, "G": 32, "N": 64},
        "gpu:dm2-llama-3.2-1b": {"B": 1, "H": 32, "P": 64, "G": 32, "N": 64},
        "gpu:mamba2-2.7b": {"B": 4, "H": 80, "P": 64, "G": 1, "N": 128},
    },
    inputs=inputs,
    leaves=("x", "dt", "A", "B", "C"),
    ours=ours,
    peers=[
        Contender(
            "mamba_ssm.ssd_chunk_scan_combined_ref",
            mamba_ssm.chunk_scan_ref,
            packages=("mamba_ssm",),
            cannot=lambda case: "needs a multiple of 256 tokens" if case.length % 256 else None,
        ),
        Contender(
            "mamba_ssm.ssd_minimal_discrete",
            mamba_ssm.ssd_minimal,
            packages=("mamba_ssm",),
            cannot=lambda case: "needs a multiple of 64 tokens" if case.length % 64 else None,
        ),
        Contender(
            "mamba_ssm.mamba_chunk_scan_combined",
            mamba_ssm.chunk_scan_triton,
            family="mamba_ssm kernels",
            packages=("mamba_ssm",),
            devices=("cuda",),
        ),
        Contender(
            "transformers Mamba-2 (chunk 256)",
            transformers_mamba.mamba2(256),
            family="transformers Mamba-2",
            packages=("transformers",),
        ),
        Contender(
            "transformers Mamba-2 (chunk 64)",
            transformers_mamba.mamba2(64),
            family="transformers Mamba-2",
            packages=("transformers",),
        ),
        Contender("mamba-scan-lite", scan_lite.chunked, family="pure-PyTorch package", packages=("mamba_scan_lite",)),
    ],
    work=work,
    promised=(2048,),
    exact_length=512,
    keeps_float32=("dt", "A"),
    longest_naive=2048,
)
