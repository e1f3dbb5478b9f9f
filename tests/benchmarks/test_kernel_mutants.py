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
import json, sys
from pathlib import Path
import torch
from benchmarks.kernels import point
from benchmarks.kernels.case import Case
from benchmarks.kernels.ops import operations
from xarch.kernels import selfcheck
from xarch.kernels.native import build
from xarch.kernels.ssd import cpp

torch.set_num_threads(1)
operation = operations()["ssd"]
case = Case("ssd", "mamba2-130m", operation.shapes["mamba2-130m"], 1024)
ours = next(c for c in operation.contenders(case) if c.name == "cpp")
compiled, agree = build.library, cpp.agree
for source in map(Path, sys.argv[2:]):
    build.forget()
    build.library = lambda name, sources: compiled(name, [source] if name == "ssd" else sources)
    cpp.agree = lambda *a, **k: None
    point.measure(operation, ours, case, budget=0.0, seconds=300, truths=Path(sys.argv[1]))
    cpp.agree = agree
    try:
        cpp._check("cpu")
        print(json.dumps({"pass": "check", "refused": False}))
    except selfcheck.SelfCheckError:
        print(json.dumps({"pass": "check", "refused": True}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(why_not() is not None, reason="no C++ compiler")
def test_the_gate_refuses_every_mutant_and_not_the_kernel(tmp_path: Path) -> None:
    right = (ROOT / "xarch" / "kernels" / "ssd" / "kernel.cpp").read_text(encoding="utf-8")
    sources = []
    for i, (old, new) in enumerate([("", ""), *MUTANTS.values()]):
        assert not old or right.count(old) == 1, "the mutant is of a line that is not there"
        sources.append(tmp_path / f"{i}.cpp")
        sources[-1].write_text(right.replace(old, new) if old else right, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XARCH_KERNELS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *map(str, sources)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 3 * len(sources), done.stderr
    for name, at in zip([None, *MUTANTS], range(0, len(lines), 3), strict=True):
        forward, both, check = lines[at : at + 3]
        assert all(("cpu_seconds" in line) == line["gate"]["passed"] for line in (forward, both))
        assert (forward["gate"]["passed"] and both["gate"]["passed"]) == (name is None), (name, forward, both)
        assert check["refused"] == (name is not None), name
