"""The correctness gate of the kernel benchmark refuses wrong kernels: mutated sources, compiled and measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xarch.kernels.native import why_not

ROOT = Path(__file__).resolve().parents[2]
STATE = "decay.cross, {}, nullptr, {LB,"
OUTPUT = "gemm::unpack(y, q, c.width, y_of(start, head)"
MUTANTS = {
    "decay's gradient 1 % off": ("sum + passed[t];", "sum + 1.01f * passed[t];"),
    "state decays 1 % too fast from chunk 6": (STATE, f"(i > 5 ? 0.99f : 1.0f) * {STATE}"),
    "state decays 0.1 % too fast from chunk 6": (STATE, f"(i > 5 ? 0.999f : 1.0f) * {STATE}"),
    "one token 0.5 % off": (OUTPUT, f"if (i == 9) for (int64_t j = 0; j < Pp; ++j) y[3 * Pp + j] *= 1.005f; {OUTPUT}"),
    "one head of one token 10 % off": (
        OUTPUT,
        f"if (i == 9 && head == 3) for (int64_t j = 0; j < Pp; ++j) y[3 * Pp + j] *= 1.1f; {OUTPUT}",
    ),
    "dB of one token zero": (
        "gemm::unpack(dB, q, c.size, c.dB + offset, stride);",
        "if (i == 12) for (int64_t j = 0; j < Np; ++j) dB[(q - 1) * Np + j] = 0; "
        "gemm::unpack(dB, q, c.size, c.dB + offset, stride);",
    ),
}
PROGRAM = """
import sys
from pathlib import Path
import torch
from benchmarks.kernels import point
from benchmarks.kernels.case import Case
from benchmarks.kernels.ops import operations
from xarch.kernels.native import build
from xarch.kernels.ssd import cpp

torch.set_num_threads(1)
compiled = build.library
build.library = lambda name, sources: compiled(name, [Path(sys.argv[1])] if name == "ssd" else sources)
if len(sys.argv) > 2:  # without the check before the first use, which alone refuses some
    cpp.agree = lambda *a, **k: None
operation = operations()["ssd"]
case = Case("ssd", "mamba2-130m", operation.shapes["mamba2-130m"], 1024)
ours = next(c for c in operation.contenders(case) if c.name == "cpp")
point.measure(operation, ours, case, budget=0.0, seconds=300)
"""


def verdicts(source: Path, *, gate_only: bool) -> tuple[list[bool], str]:
    """Whether each pass got a time, and what the process said on stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XARCH_KERNELS_CACHE": str(source.parent / "cache")}
    command = [sys.executable, "-c", PROGRAM, str(source), *(["gate"] if gate_only else [])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert all(("cpu_seconds" in line) == line["gate"]["passed"] for line in lines)
    return [line["gate"]["passed"] for line in lines], done.stderr


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason="no C++ compiler")
@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_the_gate_refuses_every_mutant_and_not_the_kernel(name: str | None, tmp_path: Path) -> None:
    source = (ROOT / "xarch" / "kernels" / "ssd" / "kernel.cpp").read_text(encoding="utf-8")
    if name is not None:
        old, new = MUTANTS[name]
        assert source.count(old) == 1, "the mutant is of a line that is not there"
        source = source.replace(old, new)
    mutated = tmp_path / "kernel.cpp"
    mutated.write_text(source, encoding="utf-8")
    passed, said = verdicts(mutated, gate_only=True)
    assert len(passed) == 2, said
    assert all(passed) == (name is None), said
    checked, said = verdicts(mutated, gate_only=False)
    assert ("self-check failed" in said) == (name in CAUGHT_AT_LOAD), said
    assert checked == ([] if name in CAUGHT_AT_LOAD else passed), said


CAUGHT_AT_LOAD = {name for name in MUTANTS if name.startswith(("decay's", "state", "one", "dB"))}
"""By the check before the first use, whose small chunks are 13."""
