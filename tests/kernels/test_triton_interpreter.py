"""The Triton kernels, run in Python by Triton's interpreter on CPU tensors: what they compute, not how fast.

Triton decides at its import whether kernels are interpreted, so each file of ``interpreted/`` runs in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xarch.kernels import backends, dispatch

HERE = Path(__file__).parent
FILES = sorted(p.name for p in (HERE / "interpreted").glob("*.py") if p.stem not in ("conftest", "agreement"))


@pytest.mark.parametrize("name", FILES)
def test_kernels_agree_with_the_naive_backend(name):
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop(dispatch.ENVIRONMENT, None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "interpreted" / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_every_triton_backend_is_tested_here():
    operations = {b.op for b in backends() if b.name == "triton"}
    assert operations
    assert operations == {Path(name).stem for name in FILES}


@pytest.mark.parametrize("op", sorted(Path(name).stem for name in FILES))
def test_without_a_gpu_there_is_one_clear_reason(op, monkeypatch):
    from xarch.kernels import gpu

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu._missing.cache_clear()
    backend = next(b for b in backends(op) if b.name == "triton")
    assert backend.available() == "PyTorch sees no CUDA device"
    assert backend.refusal("cpu", __import__("torch").float32) == "runs on cuda, not on cpu"
    gpu._missing.cache_clear()
