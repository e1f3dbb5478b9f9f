"""MOHAWK's matrix objective (arXiv 2408.10189, section 3) for one layer.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, N state size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.case import Case
from benchmarks.kernels.contender import Contender, Inputs
from benchmarks.kernels.operation import Operation
from benchmarks.kernels.peers import materialised
from benchmarks.kernels.work import Work


def inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Half-lives around 38 tokens, where the decays of a freshly initialised student lie."""
    s, L = case.size, case.length

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "q": normal(s["B"], L, s["H"], s["E"]),
        "k": normal(s["B"], L, s["K"], s["E"]),
        "C": normal(s["B"], L, s["G"], s["N"]) / s["N"],
        "B": normal(s["B"], L, s["G"], s["N"]),
        "log_a": -F.softplus(normal(s["B"], L, s["H"]) / 2 - 4),
        "D": torch.full((s["H"],), 0.1),
    }


def ours(i: Inputs, backend: str) -> Tensor:
    from xarch.kernels import matrix_distance

    found = matrix_distance(
        i["q"], i["k"], i["C"], i["B"], i["log_a"], i["D"], scale=i["q"].shape[-1] ** -0.5, backend=backend
    )
    return found.distance_BH


REACH = 1900
"""Tokens after which the decays of :func:`inputs`, 0.02 a token, leave nothing that float32 holds (exp(-40)), rounded
down."""


def work(case: Case, backward: bool) -> Work:
    """The teacher's scores once a pass (sums of a softmax can be rescaled while they run), the student's C Bᵀ within
    the reach of its decays; the gradient adds W B and Wᵀ C there. Twice a pair is a square: one triangle of tokens,
    two operations a product.
    """
    s, L = case.size, case.length
    pairs = s["B"] * s["H"] * L * L
    within = s["B"] * s["H"] * (L * L - max(L - REACH, 0) ** 2)
    item = torch.finfo(getattr(torch, case.dtype)).bits / 8
    tokens = s["B"] * L
    read = item * tokens * ((s["H"] + s["K"]) * s["E"] + 2 * s["G"] * s["N"])
    flops = pairs * s["E"] * (2 if backward else 1) + within * s["N"] * (3 if backward else 1)
    return Work(
        bytes=read + (item * tokens * 2 * s["G"] * s["N"] if backward else 0), flops=flops, exps=pairs / 2, matmul=True
    )


OPERATION = Operation(
    name="matrix_distance",
    shapes={
        "smollm2-135m": {"B": 1, "H": 9, "K": 3, "E": 64, "G": 9, "N": 64},
        "gpu:phi-1.5": {"B": 1, "H": 32, "K": 32, "E": 64, "G": 32, "N": 64},
        "gpu:llama-3.2-1b": {"B": 1, "H": 32, "K": 8, "E": 64, "G": 32, "N": 64},
    },
    inputs=inputs,
    leaves=("C", "B", "log_a", "D"),
    ours=ours,
    peers=[
        Contender(
            "published recipe, materialised",
            materialised.distance,
            family="materialised",
            packages=("mamba_ssm",),
            cannot=lambda case: "not measured above 4096 tokens" if case.length > 4096 else None,
        )
    ],
    work=work,
    promised=(4096,),
    exact_length=512,
    keeps_float32=("log_a", "D"),
)
