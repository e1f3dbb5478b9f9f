"""The gated delta rule as Gated DeltaNet calls it: keys of length 1, beta and decay per token and state.

Legend: B batch, L tokens, H query heads, K key/value heads, P value width, N key width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.case import Case
from benchmarks.kernels.contender import Contender, Inputs
from benchmarks.kernels.operation import Operation
from benchmarks.kernels.peers import transformers_delta
from benchmarks.kernels.work import Work

CHUNK = 64
"""Chunk of about the least work; the optimum lies near the width of a key."""


def inputs(case: Case, generator: torch.Generator) -> Inputs:
    """q, k, v, log a <= 0 and beta, with half-lives from a few to some hundred tokens."""
    s, L = case.size, case.length

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "q": F.normalize(normal(s["B"], L, s["H"], s["N"]), dim=-1),
        "k": F.normalize(normal(s["B"], L, s["K"], s["N"]), dim=-1),
        "v": normal(s["B"], L, s["K"], s["P"]),
        "log_a": -F.softplus(normal(s["B"], L, s["K"]) - 4),
        "beta": torch.sigmoid(normal(s["B"], L, s["K"])),
    }


def ours(i: Inputs, backend: str) -> Tensor:
    from xarch.kernels import gated_delta

    y = gated_delta(i["q"] * i["q"].shape[-1] ** -0.5, i["k"], i["v"], i["log_a"], i["beta"], backend=backend)
    assert isinstance(y, Tensor)
    return y


def work(case: Case, backward: bool) -> Work:
    """Chunks of :data:`CHUNK`, only the lower triangles, the triangular system as a product with half a square."""
    s, L = case.size, case.length
    width, size, item = s["P"], s["N"], torch.finfo(getattr(torch, case.dtype)).bits / 8
    state, query = s["B"] * L * s["K"], s["B"] * L * s["H"]
    # A state: scores of keys, reads of its keys, the system, what it keeps. A query: scores, reads of both kinds.
    flops = state * (CHUNK * size + CHUNK * width + 4 * size * width)
    flops += query * (CHUNK * size + CHUNK * width + 2 * size * width)
    moved = item * (state * (size + width) + query * (size + width)) + 8 * state
    exps = state * CHUNK / 2
    if backward:
        flops += state * (CHUNK * 3 * size + CHUNK * 2 * width + 8 * size * width)
        flops += query * (CHUNK * 3 * size + CHUNK * 2 * width + 4 * size * width)
        moved += item * (state * 2 * (size + width) + query * (2 * size + width)) + 16 * state
        exps *= 2
    return Work(bytes=moved, flops=flops, exps=exps, matmul=True)


OPERATION = Operation(
    name="gated_delta",
    shapes={
        "gdn-smollm2-135m": {"B": 1, "H": 9, "K": 3, "P": 64, "N": 64},
        "gdn-per-head": {"B": 1, "H": 9, "K": 9, "P": 64, "N": 64},
        "gpu:gdn-llama-3.2-1b": {"B": 1, "H": 32, "K": 8, "P": 64, "N": 64},
    },
    inputs=inputs,
    leaves=("q", "k", "v", "log_a", "beta"),
    ours=ours,
    peers=[
        Contender(
            "transformers torch_chunk_gated_delta_rule",
            transformers_delta.chunked,
            family="transformers Qwen3-Next",
            packages=("transformers",),
        )
    ],
    work=work,
    exact_length=512,
    keeps_float32=("log_a", "beta"),
    longest_naive=2048,
)
