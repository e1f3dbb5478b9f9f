"""Print a JSON document: keys and values, with tables for lists of uniform records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xarch.cli.tables import table
from xarch.numbers import count, figure, size

if TYPE_CHECKING:
    from rich.console import Console

MAX_ROWS = 24


def show_document(document: Mapping[str, Any], console: Console, *, everything: bool = False) -> None:
    """Print nested mappings as indented keys; long lists are truncated unless ``everything``."""
    _mapping(document, console, "", everything)


def _mapping(document: Mapping[str, Any], console: Console, indent: str, everything: bool) -> None:
    from rich.padding import Padding
    from rich.text import Text

    plain = {k: v for k, v in document.items() if not _nested(v)}
    width = max((len(str(k)) for k in plain), default=0)
    for key, value in plain.items():
        text = Text.assemble((f"{key:<{width}}  ", "dim"), _figure(str(key), value))
        console.print(Padding(text, (0, 0, 0, len(indent)), expand=False))
    for key, value in document.items():
        if not _nested(value):
            continue
        console.print(Text.assemble(indent, (str(key), "bold")))
        if isinstance(value, str):
            console.print(Padding(Text(value.rstrip()), (0, 0, 0, len(indent) + 2), expand=False))
        elif isinstance(value, Mapping) and _uniform(value):
            _list([{"name": name, **entry} for name, entry in value.items()], console, indent + "  ", everything)
        elif isinstance(value, Mapping):
            _mapping(value, console, indent + "  ", everything)
        else:
            _list(value, console, indent + "  ", everything)


def _list(items: Sequence[Any], console: Console, indent: str, everything: bool) -> None:
    from rich.padding import Padding

    shown = items if everything else items[:MAX_ROWS]
    if any(_nested(v) and not _flat(v) for item in shown for v in item.values()):
        for item in shown:
            _mapping(item, console, indent, everything)
    else:
        columns = list(dict.fromkeys(key for item in shown for key in item))
        rows = [[_scalar(item.get(c, "")) for c in columns] for item in shown]
        console.print(Padding(table(columns, rows), (0, 0, 0, len(indent)), expand=False))
    if len(items) > len(shown):
        console.print(f"{indent}... {len(items) - len(shown)} more; use -v or --json to show all", markup=False)


def _uniform(entries: Mapping[str, Any]) -> bool:
    """Whether all values are mappings with the same keys, none of them nested: a table."""
    keys = {tuple(entry) if isinstance(entry, Mapping) else () for entry in entries.values()}
    return len(keys) == 1 and keys != {()} and not any(_nested(v) for e in entries.values() for v in e.values())


def _nested(value: Any) -> bool:
    """Whether a value is printed on separate lines."""
    if isinstance(value, Mapping):
        return bool(value)
    if isinstance(value, str):
        return "\n" in value.strip()
    return isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(v, Mapping) for v in value)


def _flat(value: Any) -> bool:
    """Whether a value is a small mapping of scalars, such as a shape, that fits into a table cell."""
    return isinstance(value, Mapping) and not any(isinstance(v, (Mapping, list)) for v in value.values())


def _figure(key: str, value: Any) -> str:
    """Format a value by its key: bytes as a size, counts of parameters in short."""
    if isinstance(value, int) and not isinstance(value, bool):
        if key.endswith("bytes"):
            return size(value)
        if key == "parameters":
            return count(value)
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, Mapping):
        return " ".join(f"{k}={_scalar(v)}" for k, v in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        text = ", ".join(_scalar(v) for v in value[:8])
        return f"{text}, ... ({len(value)})" if len(value) > 8 else text or "-"
    return str(value)
