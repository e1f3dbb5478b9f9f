"""What the GPU backends share: why they cannot run, and how their matrix products round."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.precision import tracing

_LOG = logging.getLogger(__name__)
_PROGRAMS = 264
"""Two per multiprocessor of the largest GPU of today; with fewer, the heads of a group are spread over programs."""

_TOLERANCE = 5e-3
"""Relative norm of the error in the check at first use: float32 operands may be rounded to TF32."""


def why_not_triton() -> str | None:
    """Why no Triton kernel can run here, or None if one can; does not import triton."""
    if tracing():
        return "an exporter records plain operators"
    return _missing("triton")


@cache
def _missing(package: str) -> str | None:
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if importlib.util.find_spec(package) is None:
        return f"package {package} is not installed: pip install {package}"
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
    return max((d for d in range(1, ratio + 1) if ratio % d == 0 and programs // d >= _PROGRAMS), default=1)


def rows_last(t: Tensor) -> Tensor:
    """The tensor itself if its last dimension is dense, else a copy; the kernels take any other strides."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


@dataclass(slots=True)
class FirstUse:
    """The first call of a backend on a device is preceded by a small one that is compared with the naive backend."""

    op: str
    name: str
    run: Callable[..., Any]
    truth: Callable[..., Any]
    example: Callable[[torch.device, torch.dtype], tuple[list[Tensor], dict[str, Any]]]
    """Differentiable operands and keyword arguments of a small call."""
    failure: str | None = None
    """Why the backend is not to be used any more."""
    _devices: set[torch.device] = field(default_factory=set)

    def passed(self, device: torch.device) -> bool:
        """Whether the backend gives what the naive one gives; a failure is logged once, and remembered."""
        if self.failure is not None:
            return False
        if device in self._devices or torch.compiler.is_compiling() or interpreted():
            return True
        # Added first, as the check itself makes a call.
        self._devices.add(device)
        try:
            with torch.enable_grad():
                worst = max(_distances(self, device))
            if not worst <= _TOLERANCE:
                self.failure = f"its first call was wrong by {worst:.1e} (relative), want <= {_TOLERANCE:.0e}"
        except Exception as error:  # any failure of a compiler or driver means: do without this backend
            self.failure = f"its first call failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if self.failure is not None:
            _LOG.warning("%s: backend %s is skipped: %s", self.op, self.name, self.failure)
        return self.failure is None


def _distances(use: FirstUse, device: torch.device) -> list[float]:
    """Relative error of every output and gradient of the small call."""
    found = []
    for run, dtype in ((use.run, torch.float32), (use.truth, torch.float64)):
        leaves, options = use.example(device, dtype)
        outputs = [t for t in run(*leaves, **options) if t is not None and t.requires_grad]
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in outputs]
        found.append([*outputs, *torch.autograd.grad(outputs, [t for t in leaves if t.requires_grad], upstream)])
    return [float((a.double() - b).norm() / b.norm().clamp_min(1e-9)) for a, b in zip(*found, strict=True)]
