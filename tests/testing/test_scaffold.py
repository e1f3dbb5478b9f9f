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
from xarch.registry import declare
from xarch.testing.scaffold import KINDS, write_plugin

EVERY = [pytest.param(kind, marks=() if kind == "objective" else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", EVERY)
def test_written_plugin_is_green_and_listed(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write_plugin("demo", folder, kind=kind)
    # As installed: an entry point is a line of metadata beside the package.
    facts = folder / "xarch_demo-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: xarch-demo\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text("[xarch]\ndemo = xarch_demo\n")
    env = {**os.environ, "PYTHONPATH": str(folder), "XARCH_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "tests"]
    green = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert green.returncode == 0, green.stdout[-3000:]
    found = subprocess.run(
        [sys.executable, "-m", "xarch", "plugins", "--json"], env=env, capture_output=True, text=True
    )
    states = {p["name"]: p["state"] for p in json.loads(found.stdout)["plugins"]}
    assert states["demo"] == "ok"


def test_every_registered_kind_has_a_template() -> None:
    assert {kind.replace("-", "_") for kind in KINDS} == set(declare.KINDS)


@pytest.mark.slow
def test_two_plugins_are_tested_in_one_call(tmp_path: Path) -> None:
    """Test files of one name made pytest stop at the second plugin."""
    for name in ("one", "two"):
        write_plugin(name, tmp_path / name, kind="wrapper")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(tmp_path / name) for name in ("one", "two"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    green = subprocess.run([*command, "one", "two"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert green.returncode == 0, green.stdout[-3000:]


@pytest.mark.slow
def test_the_written_project_installs(tmp_path: Path) -> None:
    write_plugin("demo", tmp_path / "demo")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site")]
    installed = subprocess.run([*pip, str(tmp_path / "demo")], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr


def test_a_kind_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no template of a profile"):
        write_plugin("demo", tmp_path / "demo", kind="profile")


@pytest.mark.parametrize("name", ["9lives", "a b", "class", "../x", ""])
def test_impossible_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a plugin"):
        write_plugin(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_template_is_the_familys(tmp_path: Path) -> None:
    written = write_plugin("demo", tmp_path / "demo", family="decoder")
    names = {str(path.relative_to(tmp_path / "demo")) for path in written}
    assert {"pyproject.toml", "README.md", "xarch_demo/__init__.py", "xarch_demo/target.py"} <= names
    assert "tests/test_demo.py" in names
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
