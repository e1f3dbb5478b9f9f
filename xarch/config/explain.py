"""Turns validation errors into sentences with the key, the value, its origin and a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from xarch.config.fields import deeper_names, field_names
from xarch.config.method import HEAD
from xarch.config.provenance import DEFAULT, Merged, dotted
from xarch.config.schema import RunConfig
from xarch.config.validation import problems, shown, wanted
from xarch.config.yaml_text import Path
from xarch.errors import UsageError

MAX_SHOWN = 10


def validation_error(error: ValidationError, merged: Merged) -> UsageError:
    """Return the error to show for a configuration that the schema rejects."""
    lines = [_line(path, items, merged) for path, items in problems(error, merged.tree).items()]
    return UsageError("\n".join(_limited(lines)), "`xarch new run` writes a file with every key and its meaning")


def unknown_key(path: Path, known: Sequence[str], origin: str) -> str:
    """``unknown key stages.hiden; did you mean stages.hidden? (run.yaml:14)``."""
    parent, key = path[:-1], str(path[-1])
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    meant = dotted((*parent, near[0])) if near else _further_down(parent, key)
    if path == (HEAD,):
        return (
            f"unknown key {HEAD}: the head of a method file describes the method, a run cannot change it; what a run "
            f"can change are `families` (--set families=[]) and the keys below the head{_place(origin)}"
        )
    guess = f"; did you mean {meant}?" if meant else f"; known here: {', '.join(known)}" if known else ""
    return f"unknown key {dotted(path)}{guess}{_place(origin)}"


def _line(path: Path, items: Sequence[Any], merged: Merged) -> str:
    """Return one line for all errors about one value (a union reports one per alternative)."""
    if items[0]["type"] == "extra_forbidden":
        return unknown_key(path, field_names(path[:-1]), merged.origin(path))
    origin = merged.origin(path) if merged.has(path) else merged.origin(path[:-1])
    if items[0]["type"] == "missing":
        return f"{dotted(path)} is required{_place(origin)}"
    return f"{dotted(path)}: {wanted(path, items, RunConfig)}, not {shown(items)}{_place(origin)}"


def _further_down(parent: Path, key: str) -> str:
    """Return the full name of a field one level deeper than where the user wrote it."""
    return dotted(deeper_names(parent)[key]) if key in deeper_names(parent) else ""


def _place(origin: str) -> str:
    return f" ({origin})" if origin != DEFAULT else ""


def _limited(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_SHOWN
    return [*lines[:MAX_SHOWN], f"and {more} more"] if more > 0 else lines
