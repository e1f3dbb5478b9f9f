"""The plain-PyTorch path that transformers runs on a CPU for Gated DeltaNet."""

from __future__ import annotations

import inspect

from torch import Tensor

from benchmarks.kernels.contender import Inputs


def chunked(i: Inputs) -> Tensor:
    """Chunks of 64 tokens; query heads that share a state need copies of it."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    shared = i["q"].shape[2] // i["k"].shape[2]
    k, v, log_a, beta = (i[name].repeat_interleave(shared, 2) for name in ("k", "v", "log_a", "beta"))
    y_BLHP: Tensor = inspect.unwrap(torch_chunk_gated_delta_rule)(i["q"], k, v, log_a, beta)[0]
    return y_BLHP
