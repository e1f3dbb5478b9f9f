"""The Triton kernels, run in Python by Triton's interpreter on CPU tensors: what they compute, not how fast.

The tests themselves stand beside those of the other backends; one process runs all of them, since Triton decides at its
import whether kernels are interpreted.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from agreement import INTERPRETED

from xarch.kernels import backends, dispatch, gpu

FOLDER = Path(__file__).parent
OPERATIONS = sorted(b.op for b in backends() if b.name == "triton")
FILES = [FOLDER / "test_contract.py", *(FOLDER / f"test_{op}.py" for op in OPERATIONS)]


def run_interpreted(files: list[Path], marks: str = "not slow") -> None:
    """Fail with the output of pytest unless every test of the files with these marks passes."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop(dispatch.ENVIRONMENT, None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marks, *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.timeout(960)
@pytest.mark.slow
@pytest.mark.parametrize("marks", ["not slow", "slow"])
def test_kernels_agree_with_the_naive_backend(marks):
    assert not INTERPRETED
    run_interpreted(FILES, marks)


@pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None or importlib.util.find_spec("triton") is None,
    reason="mamba_ssm is not installed",
)
def test_kernels_and_references_of_mamba_ssm_agree_with_naive():
    run_interpreted([FOLDER / "mamba_ssm_cases.py"])


@pytest.mark.parametrize("op", OPERATIONS)
def test_without_a_gpu_there_is_one_clear_reason(op, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu.missing.cache_clear()
    backend = next(b for b in backends(op) if b.name == "triton")
    assert backend.available() == "PyTorch sees no CUDA device"
    assert backend.refusal("cpu", torch.float32) == "runs on cuda, not on cpu"
    gpu.missing.cache_clear()
