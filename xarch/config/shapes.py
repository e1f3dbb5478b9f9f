"""Short forms of a configuration, and which of its members have names and can be removed."""

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
"""Models that may be written as one value, and the field that it stands for."""
KEPT = (("stages", "*", "batch"), ("stages", "*", "ema"))
"""A number given for one of them changes that field only; another schedule or connector replaces the whole model, whose
options belong to the old one."""
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
"""Members that null removes."""


def is_at(path: Path, pattern: tuple[str, ...]) -> bool:
    """Whether a path is one that a pattern means."""
    return len(path) == len(pattern) and all(fnmatchcase(str(k), p) for k, p in zip(path, pattern, strict=True))


def removable(path: Path) -> bool:
    """Whether null at ``path`` removes a member that an earlier layer brought."""
    return any(is_at(path, pattern) for pattern in NAMED)


def short_field(path: Path) -> str | None:
    """The field that a single value at ``path`` stands for."""
    return next((name for pattern, name in SHORT.items() if is_at(path, pattern)), None)


def written_out(path: Path, value: Any) -> Any:
    """A value with every list of matches in it named m0, m1, ..."""
    if is_at(path, ("stages", "*", "matches")) and isinstance(value, list):
        return {f"m{i}": item for i, item in enumerate(value)}
    if len(path) < 3 and isinstance(value, Mapping) and (not path or path[0] == "stages"):
        return {key: written_out((*path, key), item) for key, item in value.items()}
    return value


def named_path(path: Path) -> Path:
    """A path through a list of matches as it leads through the named ones."""
    if len(path) > 3 and is_at(path[:3], ("stages", "*", "matches")) and isinstance(path[3], int):
        return (*path[:3], f"m{path[3]}", *path[4:])
    return path


def joined_keys(path: Path) -> Path:
    """A dotted path whose figure of ``requires`` is one key again: its name has a dot of its own (teacher.top1)."""
    if len(path) > 4 and is_at(path[:3], ("stages", "*", "requires")):
        figure: Key = f"{path[3]}.{path[4]}"
        return (*path[:3], figure, *path[5:])
    return path
