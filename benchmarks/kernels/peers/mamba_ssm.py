"""Functions of the package mamba_ssm: its references in plain PyTorch and its GPU kernels."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.kernels.contender import Inputs


def importable() -> None:
    """Let mamba_ssm be imported where its CUDA extension was not built; its references do not use it."""
    if "selective_scan_cuda" not in sys.modules and importlib.util.find_spec("selective_scan_cuda") is None:
        sys.modules["selective_scan_cuda"] = ModuleType("selective_scan_cuda")


def selective_scan_ref(i: Inputs) -> Tensor:
    importable()
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref as run

    return run(i["x"], i["dt"], i["A"], i["B"], i["C"], i["D"], i["z"], i["dt_bias"], delta_softplus=True)


def selective_scan_cuda(i: Inputs) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as run

    return run(i["x"], i["dt"], i["A"], i["B"], i["C"], i["D"], i["z"], i["dt_bias"], delta_softplus=True)


def chunk_scan_ref(i: Inputs) -> Tensor:
    """Chunks of 256, the default of Mamba-2."""
    importable()
    from mamba_ssm.ops.triton.ssd_combined import ssd_chunk_scan_combined_ref as run

    return run(i["x"], i["dt"], i["A"], i["B"], i["C"], 256)


def ssd_minimal(i: Inputs) -> Tensor:
    """Chunks of 64, the block length of its own test."""
    importable()
    from mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete as run

    heads = i["x"].shape[2]
    B, C = (torch.repeat_interleave(i[n], heads // i[n].shape[2], 2) for n in ("B", "C"))
    return run(i["x"] * i["dt"][..., None], i["dt"] * i["A"], B, C, 64)[0]


def chunk_scan_triton(i: Inputs) -> Tensor:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined as run

    return run(i["x"], i["dt"], i["A"], i["B"], i["C"], 256)
