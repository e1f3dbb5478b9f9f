"""Which files a measurement of an operation depends on, and their digest: figures of other code are not continued."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WATCHED = ("xarch.kernels", "benchmarks.kernels")
GATHERING = {Path("xarch/kernels/__init__.py"), Path("benchmarks/kernels/ops/__init__.py")}
"""They only name what other files define; an operation does not depend on its neighbours through them."""
HEADERS = Path("xarch/kernels/native")


def digest(operation: str) -> str:
    """Digest of the files that a measurement of an operation runs, C++ included."""
    found = hashlib.sha256()
    for path in files(operation):
        found.update(str(path).encode() + (ROOT / path).read_bytes())
    return found.hexdigest()[:16]


def files(operation: str) -> list[Path]:
    """Files under ``xarch/kernels`` and ``benchmarks/kernels`` that a point's process may import, sorted.

    Relative to the repository. Followed are import statements, those inside functions included, and the C++ sources
    beside an operation with what they include. What only orders, stores or shows points is not part of it.
    """
    todo = [f"benchmarks.kernels.{name}" for name in ("point", "fresh", f"ops.{operation}")]
    todo.append(f"xarch.kernels.{operation}")
    seen: set[Path] = set()
    while todo:
        path = _file(todo.pop())
        if path is None or path in seen or path in GATHERING:
            continue
        seen.add(path)
        todo += _imports(path)
    for folder in {path.parent for path in seen if path.is_relative_to("xarch")}:
        for source in (ROOT / folder).glob("*.cpp"):
            seen |= _included(source.relative_to(ROOT), set())
    return sorted(seen)


def _included(path: Path, seen: set[Path]) -> set[Path]:
    """A C++ file and its headers, which lie beside it or among those of all kernels."""
    if path in seen:
        return seen
    seen = seen | {path}
    for name in re.findall(r'^#include "([^"]+)"', (ROOT / path).read_text(), re.MULTILINE):
        beside = path.parent / name
        seen = _included(beside if (ROOT / beside).is_file() else HEADERS / name, seen)
    return seen


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names = [n.name for n in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # A name may be a module of its own or defined by the one it is imported from.
            names = [node.module, *(f"{node.module}.{n.name}" for n in node.names)]
        else:
            continue
        yield from (n for n in names if n.startswith(WATCHED))


def _file(module: str) -> Path | None:
    """The file of a module; None for a name that is no module."""
    base = Path(*module.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if (ROOT / path).is_file():
            return path
    return None
