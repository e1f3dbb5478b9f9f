"""Short forms of a configuration, and its named members that can be removed."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from xarch.config.yaml_text import Key, Path

SHORT = {
    ("teachers", "*"): "ref",
    ("stages", "*", "batch"): "size",
    ("stages", "*", "ema"): "decay",
    ("stages", "*", "optimiser", "schedule"): "name",
    ("stages", "*", "matches", "*", "through"): "connector",
}
"""Models that may be written as one value, and the field that it sets."""
KEPT = (("stages", "*", "batch"), ("stages", "*", "ema"))
"""A number given for one of these changes only that field; another schedule or connector replaces the whole model,
including its options."""
NAMED = (
    ("stages", "*"),
    ("gates", "*"),
    ("teachers", "*"),
    ("stages", "*", "trains", "*"),
    ("stages", "*", "matches", "*"),
    ("stages", "*", "requires", "*"),
    ("stages", "*", "phases", "*"),
    ("stages", "*", "batch", "steps", "*"),
    ("stages", "*", "optimiser", "wrap", "*"),
)
"""Members that can be removed with null."""


def is_at(path: Path, pattern: tuple[str, ...]) -> bool:
    """Return whether a path matches a pattern."""
    return len(path) == len(pattern) and all(fnmatchcase(str(k), p) for k, p in zip(path, pattern, strict=True))


def removable(path: Path) -> bool:
    """Return whether null at ``path`` removes a member of an earlier layer."""
    return any(is_at(path, pattern) for pattern in NAMED)


def short_field(path: Path) -> str | None:
    """Return the field that a single value at ``path`` sets."""
    return next((name for pattern, name in SHORT.items() if is_at(path, pattern)), None)


def written_out(path: Path, value: Any) -> Any:
    """Return a value with the entries of every list of matches named m0, m1, ..."""
    if is_at(path, ("stages", "*", "matches")) and isinstance(value, list):
        return {f"m{i}": item for i, item in enumerate(value)}
    if len(path) < 3 and isinstance(value, Mapping) and (not path or path[0] == "stages"):
        return {key: written_out((*path, key), item) for key, item in value.items()}
    return value


def named_path(path: Path) -> Path:
    """Return a path through a list of matches as a path through the named ones."""
    if len(path) > 3 and is_at(path[:3], ("stages", "*", "matches")) and isinstance(path[3], int):
        return (*path[:3], f"m{path[3]}", *path[4:])
    return path


def joined_keys(path: Path) -> Path:
    """A dotted path whose figure of ``requires`` is one key again: its name has a dot of its own (teacher.top1)."""
    if len(path) > 4 and is_at(path[:3], ("stages", "*", "requires")):
        figure: Key = f"{path[3]}.{path[4]}"
        return (*path[:3], figure, *path[5:])
    return path
