"""Pairs that every Python makes: the functions of its standard library, and the first paragraph of their docstrings."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import textwrap
import warnings
from collections.abc import Iterator

from xarch import cache_dir, new_folder, regular_text
from xarch_text.included import Files, Included, stdlib

DOCSTRINGS = "python-docstrings"

LONGEST = 4000
"""Characters of a function beyond which it is left out."""

SHORTEST = 16
"""Characters of a docstring below which it says nothing."""


def docstrings() -> Files:
    """Yield a file of JSON lines with ``source`` and ``target``, written to the cache once for every version of Python.

    Lines are in the order of their digests, so that neighbours are of different modules.
    """
    folder = cache_dir() / "text" / f"{DOCSTRINGS}-{platform.python_version()}"
    if not folder.is_dir():
        found = {_digest(source): (source, target) for source, target in _documented()}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as part, open(part / "functions.jsonl", "w", encoding="utf-8") as out:
            for digest in sorted(found):
                source, target = found[digest]
                out.write(json.dumps({"source": source, "target": target}) + "\n")
    yield folder / "functions.jsonl", "functions.jsonl"


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _documented() -> Iterator[tuple[str, str]]:
    for path, _ in sorted(stdlib(), key=lambda found: found[1]):
        try:
            text = regular_text(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escape sequences in old modules
                tree = ast.parse(text)
        except (SyntaxError, ValueError):  # A module of an installation may be in another encoding.
            continue
        lines = text.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _pair(node, lines)


def _pair(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the function without its docstring, and the docstring's first paragraph, if both say something."""
    said, quoted = ast.get_docstring(node), node.body[0]
    if said is None or len(node.body) < 2 or node.end_lineno is None or quoted.end_lineno is None:
        return
    kept = lines[node.lineno - 1 : quoted.lineno - 1] + lines[quoted.end_lineno : node.end_lineno]
    source = textwrap.dedent("\n".join(kept)).strip()
    target = " ".join(said.split("\n\n")[0].split())
    if len(source) <= LONGEST and len(target) >= SHORTEST:
        yield source, target


INCLUDED_PAIRS: dict[str, Included] = {DOCSTRINGS: (docstrings, "functions and their docstrings")}
"""By reference."""
