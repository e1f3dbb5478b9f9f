"""The public names: what type checkers see and what is imported on first use are the same."""

from __future__ import annotations

import ast
from pathlib import Path

import xarch


def test_type_checkers_see_the_public_names() -> None:
    """house 3: two lists of public names were kept by hand."""
    tree = ast.parse(Path(xarch.__file__).read_text(encoding="utf-8"))
    [block] = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == xarch._PUBLIC


def test_every_public_name_exists() -> None:
    for name in xarch.__all__:
        assert getattr(xarch, name) is not None
