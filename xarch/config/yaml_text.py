"""YAML as a configuration language: plain values with line numbers; no code execution and bounded expansion.

Differences from PyYAML's safe loader: ``1e-3`` is a number, ``off`` and ``no`` are text (as in YAML 1.2), dates stay
text, duplicate keys, tags, merge keys, NaN and infinity are errors, and size, depth and expansion are bounded.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml

from xarch.errors import UsageError
from xarch.files.limits import shown

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
MAX_NODES = 40_000
"""Values written out in one document; they are counted while it is read, which takes some 50 µs each."""
MAX_DEPTH = 40
LONGEST = 400
"""Digits of a whole number; the schema bounds its size."""

Key = str | int
Path = tuple[Key, ...]

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Document:
    """Parsed YAML.

    Attributes:
        data: the top-level value.
        lines: path of every key and list item -> line, from 1.
    """

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)


class TooLarge(yaml.MarkedYAMLError):
    """A document beyond the limits."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops as soon as a document has more values or levels than are read."""

    _values = 0
    _levels = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node and what is below it.

        Raises:
            yaml.YAMLError: too many values, nested too deeply, or not valid.
        """
        self._values += 1
        self._levels += 1
        if self._values > MAX_NODES or self._levels > 2 * MAX_DEPTH:
            limit = f"more than {MAX_NODES} values" if self._values > MAX_NODES else "nested too deeply"
            raise TooLarge(problem=limit, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._levels -= 1
        return node


class _Loader(BoundedLoader):
    """Recognises null, true/false, integers and floats; everything else is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own class attribute)


_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))
_Loader.add_implicit_resolver(
    f"{_TAG}int", re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+)\Z"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the text that :class:`_Loader` would read as something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(value: Any, *, flow: bool = False) -> str:
    """Return ``value`` as YAML readable by :func:`parse_yaml`; ``flow`` puts it on one line."""
    width = 1_000_000 if flow else 100
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=width)
    return str(text).removesuffix("...\n")


def parse_yaml(text: str, where: str) -> Document:
    """Parse one YAML document; ``where`` names it in errors. An empty text is an empty mapping.

    Raises:
        UsageError: it is not valid YAML, or contains something not allowed in a configuration (see the module
            docstring).
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{where} has {len(text)} characters; a configuration has at most {MAX_BYTES}")
    if text.count(",") > MAX_VALUES:
        # Tokens are scanned ahead of the values that are counted.
        raise UsageError(f"{where} has more than {MAX_VALUES} values")
    try:
        root = _composed(text)
        if root is None:
            return Document({})
        builder = _Builder(where)
        return Document(builder.build(root, ()), builder.lines)
    except TooLarge as e:
        raise UsageError(f"{where}{_position(e)}: {_problem(e)}") from e
    except yaml.YAMLError as e:
        raise UsageError(f"{where}{_position(e)}: not valid YAML: {_problem(e)}") from e
    except RecursionError:
        raise UsageError(f"{where} is nested too deeply") from None


@lru_cache(maxsize=64)
def _composed(text: str) -> yaml.Node | None:
    """Return the nodes of a document; recipes extend each other, so the same text is parsed many times."""
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def _position(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)


class _Builder:
    """Converts nodes to values and limits alias expansion."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[Path, int] = {}
        self.count = 0

    def fail(self, node: yaml.Node, what: str) -> UsageError:
        return UsageError(f"{self.where}:{node.start_mark.line + 1}: {what}")

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.fail(node, f"aliases expand to more than {MAX_VALUES} values")
        if len(path) > MAX_DEPTH:
            raise self.fail(node, f"nested more than {MAX_DEPTH} levels deep")
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return self.sequence(node, path)
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "int", "float", "bool", "null"):
            return self.scalar(node, kind)
        raise self.fail(node, f"tag {node.tag!r} is not allowed")

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, "a key must be plain text")
            key = key_node.value
            if key == "<<":
                raise self.fail(key_node, "merge keys (<<) are not supported")
            if key in built:
                first = self.lines[(*path, key)]
                raise self.fail(key_node, f"{'.'.join(map(str, (*path, key)))} is given twice, first in line {first}")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            built[key] = self.build(value_node, (*path, key))
        return built

    def sequence(self, node: yaml.SequenceNode, path: Path) -> list[Any]:
        built = []
        for i, item in enumerate(node.value):
            self.lines[(*path, i)] = item.start_mark.line + 1
            built.append(self.build(item, (*path, i)))
        return built

    def scalar(self, node: yaml.ScalarNode, kind: str) -> Any:
        text = node.value
        try:
            if kind == "int":
                return int(self.bounded(text.replace("_", "")), 16 if "x" in text else 10)
            if kind == "float":
                return self.finite(node, float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan")))
        except ValueError:
            raise self.fail(node, f"{shown(text)} is not a number") from None
        if kind == "bool":
            return text.lower() == "true"
        return None if kind == "null" else text

    def bounded(self, digits: str) -> str:
        if len(digits) > LONGEST:
            raise ValueError
        return digits

    def finite(self, node: yaml.Node, value: float) -> float:
        if not math.isfinite(value):
            raise self.fail(node, "NaN and infinity are not allowed")
        return value
