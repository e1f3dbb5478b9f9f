"""The rules of the house: who may import whom, what lies where, style and types."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if (p / "__init__.py").exists())
PUBLIC_MODULES = (
    "xarch.testing",
    "xarch.kernels",
    "xarch.optim",
    "xarch.numbers",
    "xarch.report",
    "xarch.export.lowerings",
    "xarch.matching.objectives",
    "xarch.matching.connectors",
)
FAMILIES = ("xarch_decoder", "xarch_encdec", "xarch_field", "xarch_image")
"""Plugins that others may import: what models of one family share."""
TOP = {"LICENSE", "pyproject.toml", "README.md", "xarch", "plugins", "tests", "benchmarks", "examples"}


def imports(folder: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """(file, module, names) of every import below a folder."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield file, alias.name, []
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield file, node.module, [a.name for a in node.names]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_import_public_names_only(plugin: str) -> None:
    import xarch

    wrong = []
    for file, module, names in imports(ROOT / "plugins" / plugin):
        package = module.split(".")[0]
        if package.startswith("xarch_") and package not in (plugin, *FAMILIES):
            wrong.append(f"{file.name}: another plugin, {module}")
        if package != "xarch" or module.startswith(PUBLIC_MODULES):
            continue
        if module != "xarch":
            wrong.append(f"{file.name}: private module {module}")
        wrong += [f"{file.name}: {n} is not public" for n in names if n not in xarch.__all__]
    assert not wrong


def test_the_engine_imports_no_library_of_models() -> None:
    rooms = ("engine", "matching", "planning", "contracts")
    wrong = [
        f"{file.relative_to(ROOT)}: {module}"
        for room in rooms
        for file, module, _ in imports(ROOT / "xarch" / room)
        if module.startswith(("transformers", "timm"))
    ]
    assert not wrong


def test_only_one_module_knows_ranks() -> None:
    wrong = [
        str(file.relative_to(ROOT))
        for file, module, _ in imports(ROOT / "xarch")
        if module.startswith(("accelerate", "torch.distributed")) and file.name != "distributed.py"
    ]
    assert not wrong


def test_every_plugin_is_registered_and_shipped() -> None:
    entries = set(PROJECT["project"]["entry-points"]["xarch"].values())
    shipped = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert {f"plugins/{p}" for p in PLUGINS} | {"xarch"} == shipped
    assert set(PLUGINS) | {"xarch.builtin"} == entries


def test_top_level_is_as_agreed() -> None:
    listed = subprocess.run(["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {n for n in listed.stdout.split() if not n.startswith(".")} == TOP


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        pytest.param(["mypy"], marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_style_and_types(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
