"""Layers of a configuration, merged while tracking the origin of every value."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xarch.config.shapes import KEPT, is_at, named_path, removable, short_field, written_out
from xarch.config.yaml_text import Document, Key, Path
from xarch.errors import UsageError

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One value set by a layer.

    Attributes:
        path: its path in the configuration.
        value: a scalar, a list (replaced as a whole), or an empty mapping.
        origin: where it was set, e.g. ``run.yaml:14``.
        text: the user's text, for values whose type is determined by the schema.
    """

    path: Path
    value: Any
    origin: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one source, and the origin of every key in it."""

    label: str
    assignments: tuple[Assignment, ...]
    origins: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def of_document(cls, label: str, document: Document) -> Layer:
        """Create a layer from a file; the top level must be a mapping."""
        if not isinstance(document.data, dict):
            raise UsageError(f"{label}: the top level must be a mapping, not {type(document.data).__name__}")
        origins = {path: f"{label}:{line}" for path, line in document.lines.items()}
        found = tuple(Assignment(path, value, origins[path]) for path, value in leaves(document.data))
        return cls(label, found, origins)

    def get(self, path: Path) -> Assignment | None:
        """Return the last assignment to exactly ``path``."""
        return next((a for a in reversed(self.assignments) if a.path == path), None)


def leaves(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every scalar, list and empty mapping of a nested mapping, with its path."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def deep_leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Like :func:`leaves`, but also descends into lists."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from deep_leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from deep_leaves(item, (*path, i))
    else:
        yield path, value


def dotted(path: Path) -> str:
    """Return a dotted path, e.g. ``stages.hidden.matches.0``."""
    return ".".join(str(p) for p in path)


class Merged:
    """The tree that results from applying layers in order; later layers override earlier ones.

    Mappings merge key by key, lists and scalars are replaced; a list of matches becomes named ones (m0, m1, ...) that
    replace all existing ones. Null removes a stage, match, batch step, phase, gate or any other named member from an
    earlier layer; a null section is an empty one.
    """

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[Path, str] = {}
        self.texts: dict[Path, str] = {}

    def apply(self, layer: Layer) -> None:
        """Add one layer on top."""
        for a in layer.assignments:
            self.assign(a)
        named = {named_path(path): origin for path, origin in layer.origins.items()}
        self.origins.update({path: origin for path, origin in named.items() if self.has(path)})

    def assign(self, a: Assignment) -> None:
        """Set one value.

        Raises:
            UsageError: the path leads into a list at a place that does not exist.
        """
        if (
            a.value is None
            and a.text is None
            and len(a.path) == 1
            and isinstance(self.tree.get(str(a.path[0]), {}), dict)
        ):
            return
        node: Any = self.tree
        path: Path = ()
        for key in a.path[:-1]:
            path = (*path, self._key(node, key, (*path, key), a.origin))
            node = self._enter(node, path, a.origin)
        last = self._key(node, a.path[-1], a.path, a.origin)
        path = (*path, last)
        if a.value == {} and isinstance(node, dict) and isinstance(node.get(last), dict):
            return
        if (
            any(is_at(path, pattern) for pattern in KEPT)
            and isinstance(a.value, int | float)
            and isinstance(node, dict)
            and isinstance(node.get(last), dict)
        ):
            node, last = node[last], str(short_field(path))
            path = (*path, last)
        replaces = isinstance(node, list) or last in node
        if replaces:
            self._forget(path)
        if a.value is None and replaces and removable(path):
            del node[last]
            return
        node[last] = written_out(path, copy.deepcopy(a.value))
        self.origins[path] = a.origin
        if a.text is not None:
            self.texts[path] = a.text

    def _enter(self, node: Any, path: Path, origin: str) -> Any:
        """Return the mapping or list at ``path``, creating it if needed and replacing conflicting values."""
        key = path[-1]
        child = node.get(key) if isinstance(node, dict) else node[key]
        if not isinstance(child, (dict, list)):
            field, before = short_field(path), self.origin(path)
            if child is not None:
                self._forget(path)
            child = {} if child is None or field is None else {field: child}
            self.origins[path] = origin
            if child:
                self.origins[(*path, str(field))] = before
            node[key] = child
        return child

    @staticmethod
    def _key(node: Any, key: Key, path: Path, origin: str) -> Key:
        """Return ``key`` as used by the node: an integer for a list."""
        if not isinstance(node, list):
            return key
        if str(key) in map(str, range(len(node))):
            return int(key)
        raise UsageError(f"{dotted(path)}: the list has {len(node)} entries, numbered from 0 ({origin})")

    def _forget(self, path: Path) -> None:
        for known in [p for p in self.origins if p[: len(path)] == path]:
            del self.origins[known]
            self.texts.pop(known, None)

    def has(self, path: Path) -> bool:
        """Return whether some layer set a value at ``path``."""
        node: Any = self.tree
        for key in path:
            if isinstance(node, dict) and key in node:
                node = node[str(key)]
            elif isinstance(node, list) and isinstance(key, int) and key < len(node):
                node = node[key]
            else:
                return False
        return True

    def origin(self, path: Path) -> str:
        """Return where the value at ``path`` was set, or "default"."""
        if not self.has(path):
            short = path[:-1] if path and short_field(path[:-1]) == path[-1] else ()
            return self.origin(short) if short and self.has(short) else DEFAULT
        for stop in range(len(path), 0, -1):
            if path[:stop] in self.origins:
                return self.origins[path[:stop]]
        return DEFAULT
