"""``xarch new plugin`` writes a package that installs and passes its conformance tests untouched."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xarch.errors import UsageError
from xarch.testing.scaffold import write_plugin


@pytest.mark.slow
def test_written_plugin_is_green_and_listed(tmp_path: Path) -> None:
    write_plugin("demo", tmp_path / "demo")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    installed = subprocess.run([*pip, str(tmp_path / "demo")], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    env = {**os.environ, "PYTHONPATH": str(site), "XARCH_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    green = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path / "demo"), "tests"],
        cwd=tmp_path / "demo",
        env=env,
        capture_output=True,
        text=True,
    )
    assert green.returncode == 0, green.stdout[-3000:]
    pairs = subprocess.run(
        [sys.executable, "-m", "xarch", "list", "pairs", "--json"], env=env, capture_output=True, text=True, check=True
    )
    assert "demo" in json.dumps(json.loads(pairs.stdout))


@pytest.mark.parametrize("name", ["9lives", "a b", "class", "../x", ""])
def test_impossible_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a plugin"):
        write_plugin(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_template_is_the_familys(tmp_path: Path) -> None:
    written = write_plugin("demo", tmp_path / "demo", family="decoder")
    names = {str(path.relative_to(tmp_path / "demo")) for path in written}
    assert {"pyproject.toml", "README.md", "xarch_demo/__init__.py", "xarch_demo/target.py"} <= names
    assert "tests/test_conformance.py" in names
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert "${" not in text
        if path.suffix == ".py":
            ast.parse(text)
    with pytest.raises(UsageError, match="'radiance-field' has no template"):
        write_plugin("demo", tmp_path / "other", family="radiance-field")
    assert not (tmp_path / "other").exists()


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        write_plugin("demo", tmp_path)
