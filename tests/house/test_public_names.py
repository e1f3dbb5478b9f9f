"""The public names: what type checkers see and what is imported on first use are the same."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import xarch
from xarch import UsageError


def test_type_checkers_see_the_public_names() -> None:
    """house 3: two lists of public names were kept by hand."""
    tree = ast.parse(Path(xarch.__file__).read_text(encoding="utf-8"))
    [block] = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == xarch._PUBLIC


def test_every_public_name_exists() -> None:
    for name in xarch.__all__:
        assert getattr(xarch, name) is not None


def test_the_export_function_survives_the_import_of_its_package(tmp_path: Path) -> None:
    """``xarch.export`` is a function and a package: a second call failed once the package was imported."""
    importlib.import_module("xarch.export.profiles")
    with pytest.raises(UsageError, match="is not a run folder"):
        xarch.export(tmp_path / "nothing", "cpu")
