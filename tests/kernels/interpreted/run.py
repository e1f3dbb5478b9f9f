"""Running a file of this folder in its own process: Triton decides at its import whether kernels are interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from xarch.kernels import dispatch


def run_cases(path: Path, marks: str = "not slow") -> None:
    """Fail with the output of pytest unless every test of the file with these marks passes."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop(dispatch.ENVIRONMENT, None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marks, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
