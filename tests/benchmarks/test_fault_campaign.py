"""The fault campaign sees what it looks for, and finds nothing in a reduced run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.models import Model
from benchmarks.store import Result
from benchmarks.tables import rows

ROOT = Path(__file__).parents[2]


def run_folder(folder: Path) -> Path:
    for name in ("student/model.safetensors", "eval.json", "report.html", "report.md", "student/README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_run_that_differs_is_seen(tmp_path: Path) -> None:
    model = Model("decoder", tmp_path)
    run_folder(model.whole)
    other = run_folder(tmp_path / "other")
    assert model.differs(other) == []
    (other / "eval.json").write_text("another")
    (other / "student" / ".tmpAbC123").write_text("left")
    (other / "report.html").unlink()
    assert model.differs(other) == ["eval.json", "student/.tmpAbC123", "report.html"]


def test_the_table_counts_what_is_lost() -> None:
    outcomes = ("as undisturbed", "as undisturbed", "LOST: it cannot be resumed", "unexpected")
    points = [{"model": "field", "kind": "kill", "phase": str(i), "outcome": o} for i, o in enumerate(outcomes)]
    (row,) = rows(Result({"benchmark": "faults"}, {}, points))
    assert (row.what, row.figure, row.seeds) == ("field: kill", "2 as they should be", "4")
    assert row.rival == "1 lost, 1 with another exit code"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_reduced_campaign_loses_nothing(tmp_path: Path) -> None:
    options = ["--kills", "4", "--terms", "2", "--models", "decoder", "--kinds", "kill", "term", "flip"]
    command = [sys.executable, "-m", "benchmarks.faults", *options, "--work", str(tmp_path)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "faults.json")], cwd=ROOT, capture_output=True, text=True, timeout=1700
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    points = json.loads((tmp_path / "faults.json").read_text())["points"]
    assert {p["outcome"] for p in points} == {"as undisturbed", "named"}
    assert len(points) > 30
