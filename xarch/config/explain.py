"""Turns validation errors into sentences with the key, the value, its origin and a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from xarch.config.fields import deeper_names, field_names
from xarch.config.provenance import DEFAULT, Merged, dotted
from xarch.config.yaml_text import Path
from xarch.errors import UsageError

MAX_SHOWN = 10


def validation_error(error: ValidationError, merged: Merged) -> UsageError:
    """Return the error to show for a configuration that the schema rejects."""
    problems: dict[Path, list[str]] = {}
    for item in error.errors(include_url=False):
        path = data_path(item["loc"], merged.tree, absent=item["type"] == "missing")
        problems.setdefault(path, []).append(_sentence(item, path, merged))
    # One wrong key inside a union also makes the other alternatives reject the whole value.
    telling = [p for p in problems if not any(len(q) > len(p) and q[: len(p)] == p for q in problems)]
    lines = [_joined(path, problems[path], merged) for path in telling]
    return UsageError("\n".join(_limited(lines)), "`xarch new run` writes a file with every key and its meaning")


def unknown_key(path: Path, known: Sequence[str], origin: str) -> str:
    """``unknown key stages.hiden; did you mean stages.hidden? (run.yaml:14)``."""
    parent, key = path[:-1], str(path[-1])
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    meant = dotted((*parent, near[0])) if near else _further_down(parent, key)
    guess = f"; did you mean {meant}?" if meant else f"; known here: {', '.join(known)}" if known else ""
    return f"unknown key {dotted(path)}{guess}{_place(origin)}"


def data_path(loc: Sequence[str | int], tree: Any, *, absent: bool = False) -> Path:
    """Return a pydantic location without the parts that name union alternatives; ``absent``: its last part is a missing
    key."""
    path: list[str | int] = []
    node = tree
    for step, key in enumerate(loc):
        if isinstance(node, dict) and key in node:
            node = node[str(key)]
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            node = node[key]
        elif not absent or step < len(loc) - 1:
            continue
        path.append(key)
    return tuple(path)


def _sentence(item: Any, path: Path, merged: Merged) -> str:
    if item["type"] == "extra_forbidden":
        return unknown_key(path, field_names(path[:-1]), merged.origin(path))
    if item["type"] == "missing":
        return f"{dotted(path)} is required"
    message = str(item["msg"]).removeprefix("Value error, ").partition(" or instance of ")[0]
    return message[:1].lower() + message[1:]


def _joined(path: Path, texts: list[str], merged: Merged) -> str:
    """Return one line for all errors about one value (a union reports one per alternative)."""
    first = texts[0]
    if first.startswith("unknown key"):
        return first
    origin = merged.origin(path) if merged.has(path) else merged.origin(path[:-1])
    if first.endswith("is required"):
        return first + _place(origin)
    seen = _shorten(_value(merged.tree, path))
    return f"{dotted(path)}: {' or '.join(dict.fromkeys(texts))}, not {seen}{_place(origin)}"


def _further_down(parent: Path, key: str) -> str:
    """Return the full name of a field one level deeper than where the user wrote it."""
    return dotted(deeper_names(parent)[key]) if key in deeper_names(parent) else ""


def _value(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _place(origin: str) -> str:
    return f" ({origin})" if origin != DEFAULT else ""


def _limited(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_SHOWN
    return [*lines[:MAX_SHOWN], f"and {more} more"] if more > 0 else lines
