"""The Triton kernels, run in Python by Triton's interpreter on CPU tensors: what they compute, not how fast."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from interpreted.run import run_cases

from xarch.kernels import backends, gpu

FOLDER = Path(__file__).parent / "interpreted"
OPERATIONS = sorted(b.op for b in backends() if b.name == "triton")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.timeout(960)
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_agree_with_the_naive_backend(op, marks):
    run_cases(FOLDER / f"{op}_cases.py", marks)


@pytest.mark.parametrize("op", OPERATIONS)
def test_without_a_gpu_there_is_one_clear_reason(op, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu._missing.cache_clear()
    backend = next(b for b in backends(op) if b.name == "triton")
    assert backend.available() == "PyTorch sees no CUDA device"
    assert backend.refusal("cpu", torch.float32) == "runs on cuda, not on cpu"
    gpu._missing.cache_clear()
