"""When the backends on kernels of ``mamba_ssm`` and ``causal_conv1d`` are available."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from xarch.kernels import backends, gpu

EXTENSIONS = {
    "selective_scan": ("mamba_ssm", "selective_scan_cuda"),
    "ssd": ("mamba_ssm", "selective_scan_cuda"),
    "causal_conv1d": ("causal_conv1d", "causal_conv1d_cuda"),
}


@pytest.mark.parametrize("op", EXTENSIONS)
def test_what_ismissing_is_said_in_one_line(op, monkeypatch):
    package, extension = EXTENSIONS[op]
    backend = next(b for b in backends(op) if b.name == "mamba_ssm")
    installed: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def reason() -> str | None:
        gpu.missing.cache_clear()
        return backend.available()

    assert reason() == "PyTorch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert reason() == f"package {package} is not installed: pip install {package.replace('_', '-')}"
    installed.add(package)
    assert reason() == f"package {package} was installed without its CUDA extension {extension}: build it with nvcc"
    installed.add(extension)
    assert reason() is None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert reason() == "torch.compile cannot record its kernels"
    gpu.missing.cache_clear()
