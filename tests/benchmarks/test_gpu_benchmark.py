"""The one command for a machine with a GPU, as far as a CPU can try it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_without_a_gpu_it_says_how_to_rehearse() -> None:
    done = run("--device", "cpu")
    assert done.returncode == 2
    assert "--rehearse" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    done = run(
        *("--device", "cpu", "--rehearse", "--seeds", "0"),
        *("--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = json.loads((tmp_path / "results" / "kernels_cpu_float32.json").read_text())
    assert {p["op"] for p in kernels["points"] if p["status"] == "done"} >= {"selective_scan", "ssd", "matrix_distance"}
    speed = json.loads((tmp_path / "results" / "conversion_speed_cpu.json").read_text())
    assert {r["way"] for r in speed["points"] if r["status"] == "done"} == {"xarch"}
    paper = json.loads((tmp_path / "runs" / "deit_lt_cifar100_paper" / "study.json").read_text())
    assert paper["header"]["finished"]
    assert {point["what"] for point in paper["points"]} >= {"deit: top1", "deit-lt: top1"}
    for part in ("hybrid", "full"):
        quality = json.loads((tmp_path / "results" / f"smollm2_{part}_cpu.json").read_text())
        assert quality["points"][0]["student"]["kl"] >= 0
