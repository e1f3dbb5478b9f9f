"""Shared by the GPU backends: availability, launch sizes and the precision of matrix products."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.precision import tracing


@dataclass
class LaunchSizes:
    """Tuned sizes of launches. They change speed only; tests set others to reach every path with little work."""

    programs: int = 264
    """With fewer than two per multiprocessor of a large GPU, the heads of a group are spread over programs."""
    scan_tile: int = 1024
    """States times tokens that a program of the selective scan takes at once: eight a thread, so that three programs
    share the registers."""


SIZES = LaunchSizes()

TOLERANCE = 1e-2
"""Of a row in the check before the first use: float32 operands may be rounded to TF32, each by up to 5e-4."""


def why_not_triton() -> str | None:
    """Why no Triton kernel can run here, or None if one can; does not import triton."""
    return _recorded() or missing("triton")


def why_not_mamba_ssm() -> str | None:
    """Why the kernels of ``mamba_ssm`` cannot run here, or None if they can; does not import it."""
    return _recorded() or _compiled() or missing("mamba_ssm", "selective_scan_cuda")


def why_not_causal_conv1d() -> str | None:
    """Why the kernels of ``causal_conv1d`` cannot run here, or None if they can."""
    return _recorded() or _compiled() or missing("causal_conv1d", "causal_conv1d_cuda")


def _recorded() -> str | None:
    return "an exporter records plain operators" if tracing() else None


def _compiled() -> str | None:
    """The kernels of other packages are not PyTorch operators."""
    return "torch.compile cannot record its kernels" if torch.compiler.is_compiling() else None


@cache
def missing(package: str, extension: str | None = None) -> str | None:
    """Why a package that needs a GPU cannot be used; the answer is cached (``missing.cache_clear()``)."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if importlib.util.find_spec(package) is None:
        return f"package {package} is not installed: pip install {package.replace('_', '-')}"
    # The package imports its extension without a guard, so importing the package to find out would raise.
    if extension is not None and importlib.util.find_spec(extension) is None:
        return f"package {package} was installed without its CUDA extension {extension}: build it with nvcc"
    return None


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


def dot_mode(*operands: Tensor) -> dict[str, Any]:
    """Launch arguments ``DOT`` and ``PRECISION`` of a kernel: the dtype that enters tensor cores, and how float32 does.

    Operands of one half precision enter as they are and are summed in float32. Float32 follows
    ``torch.set_float32_matmul_precision``: three TF32 products (nearly float32) at "highest", one otherwise.
    """
    import triton.language as tl

    dtypes = {t.dtype for t in operands}
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    half = not interpreted() and len(dtypes) == 1
    names = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "DOT": names.get(dtypes.pop(), tl.float32) if half else tl.float32,
        "PRECISION": "tf32x3" if exact else "tf32",
    }


def is_half(mode: dict[str, Any]) -> bool:
    """Whether :func:`dot_mode` found operands of two bytes."""
    return mode["DOT"].primitive_bitwidth == 16


def heads_per_program(programs: int, ratio: int) -> int:
    """The most of the ``ratio`` heads of a group that one program can take while enough programs are left.

    Args:
        programs: how many there are with one head each.
        ratio: heads per group.
    """
    return max((d for d in range(1, ratio + 1) if ratio % d == 0 and programs // d >= SIZES.programs), default=1)


def same_dtype(*operands: Tensor) -> tuple[Tensor, ...]:
    """The operands, widened to float32 unless all have one dtype."""
    return operands if len({t.dtype for t in operands}) == 1 else tuple(t.float() for t in operands)


def rows_last(t: Tensor) -> Tensor:
    """The tensor itself if its last dimension is dense, else a copy; the kernels take any other strides."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()
