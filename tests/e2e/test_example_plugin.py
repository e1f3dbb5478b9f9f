"""examples/plugin, as an author gives it away: installed, tested by its own tests, converted by command line."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xarch

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"
PYTHON = sorted(PLUGIN.rglob("*.py"))


def test_it_is_small() -> None:
    """Issue 9: at most 350 lines of Python and 30 of YAML (the review's prototype took 683 and 29)."""
    package = [p for p in PYTHON if "tests" not in p.parts]
    assert sum(len(p.read_text(encoding="utf-8").splitlines()) for p in package) <= 350
    assert sum(len(p.read_text(encoding="utf-8").splitlines()) for p in PLUGIN.rglob("*.yaml")) <= 30
    assert sum(len(p.read_text(encoding="utf-8").splitlines()) for p in PYTHON) - 350 <= 30, "tests are the kit's"


@pytest.mark.parametrize("file", PYTHON, ids=lambda file: file.name)
def test_it_uses_public_names_only(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "xarch":
            assert node.module in ("xarch", "xarch.testing")
            assert {a.name for a in node.names} <= {*xarch.__all__, "testing"}
        elif isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.startswith("xarch.")]


def test_the_core_does_not_know_it() -> None:
    known = [p for p in (ROOT / "xarch").rglob("*.py") if "xarch_rows" in p.read_text(encoding="utf-8")]
    assert not known


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which it is installed."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("example")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "site")]
    done = subprocess.run([*install, str(PLUGIN)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        **os.environ,
        "PYTHONPATH": str(folder / "site"),
        "XARCH_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
def test_its_own_tests_pass(site: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PLUGIN / "tests")]
    done = subprocess.run(command, cwd=tmp_path, env=site, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_it_converts_from_the_command_line(site: dict[str, str], tmp_path: Path) -> None:
    def command(*words: str) -> None:
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, env=site, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    command("xarch_rows.source", "digits", "teacher.safetensors")
    command("xarch", "convert", "rows-kd", "--teacher", "rows:teacher.safetensors", "--out", "run")
    found = json.loads((tmp_path / "run" / "eval.json").read_text(encoding="utf-8"))
    assert found["student"]["accuracy"] >= found["teacher"]["accuracy"] - 0.03
    parity = json.loads((tmp_path / "run" / "export" / "cpu" / "parity.json").read_text(encoding="utf-8"))
    assert parity["passed"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    exits = [row["weighted.exits.features.0"] for row in rows if "weighted.exits.features.0" in row]
    assert exits[0] > 0
    assert exits[-1] == 0, "the phase ended the exits"
