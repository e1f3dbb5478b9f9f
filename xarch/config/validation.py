"""Validation of user or file data against a model, with actionable errors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from xarch.config.fields import models_at
from xarch.config.yaml_text import Path
from xarch.errors import UsageError

M = TypeVar("M", bound=BaseModel)
SHOWN = 80
"""Maximum number of characters shown of an invalid value."""
NOUNS = {
    "float": "a number",
    "int": "an integer",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
"""Start of pydantic's name of an error about a type -> the type in words."""


def validated(model: type[M], data: Mapping[str, Any], where: str, hint: str = "") -> M:
    """Validate data and return the model.

    Args:
        where: path of the data, prefixed to each invalid key with a dot, e.g. "student.options"; without a dot if it
            ends with a space.
        hint: help text; by default the existing keys.

    Raises:
        UsageError: unknown keys or invalid values, each with the expected and the actual value.
    """
    try:
        return model.model_validate(dict(data) if isinstance(data, Mapping) else data)
    except ValidationError as e:
        raise refusal(e, model, data, where, hint) from e


def refusal(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], where: str, hint: str = ""
) -> UsageError:
    """Return the error to show for data that a model rejects; arguments as for :func:`validated`."""
    lines = []
    found = problems(error, data)
    for path, items in found.items():
        keys = ".".join(str(part) for part in path)
        name = f"{where}{'' if where.endswith(' ') or not keys else '.'}{keys}"
        if items[0]["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), _keys(path[:-1], model), n=1)
            lines.append(f"{name}: unknown key" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif items[0]["type"] == "missing":
            lines.append(f"{name} is required")
        else:
            lines.append(f"{name}: {wanted(path, items, model)} (seen {shown(items)})")
    known = _keys(next(iter(found))[:-1], model)
    return UsageError("; ".join(lines), hint or f"keys here: {', '.join(sorted(known)) or 'none'}")


def problems(error: ValidationError, data: Mapping[str, Any]) -> dict[Path, list[Any]]:
    """Return path in the data -> pydantic's errors about that value, one per alternative of a union."""
    found: dict[Path, list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(data_path(item["loc"], data, absent=item["type"] == "missing"), []).append(item)
    # One wrong key inside a union also makes the other alternatives reject the whole value.
    return {p: items for p, items in found.items() if not any(len(q) > len(p) and q[: len(p)] == p for q in found)}


def data_path(loc: Sequence[str | int], tree: Any, *, absent: bool = False) -> Path:
    """Return a pydantic location without the parts that name union alternatives; ``absent``: its last part is a missing
    key."""
    path: list[str | int] = []
    node = tree
    for step, key in enumerate(loc):
        entries = dict(enumerate(node)) if isinstance(node, list | tuple) else node
        if isinstance(entries, Mapping) and key in entries:
            node = entries[key]
        elif not absent or step < len(loc) - 1:
            continue
        path.append(key)
    return tuple(path)


def wanted(path: Path, items: Sequence[Any], root: type[BaseModel]) -> str:
    """Return what a value should be, in words; several errors are the alternatives of a union.

    Args:
        root: model of the whole data.
    """
    kinds: dict[str, None] = {}
    others: dict[str, None] = {}
    for item in items:
        start = item["type"].partition("_")[0]
        if item["type"] == "literal_error":
            kinds[item["ctx"]["expected"]] = None
        elif start == "model":
            fields = [name for kind in models_at(path, root) for name in kind.model_fields]
            kinds[f"{{{', '.join(fields)}}}" if len(items) > 1 and fields else NOUNS[start]] = None
        elif start in NOUNS and item["type"].endswith(("_type", "_parsing", "_from_float")):
            kinds[NOUNS[start]] = None
        else:
            text = str(item["msg"]).removeprefix("Value error, ")
            others[text[:1].lower() + text[1:]] = None
    what = "a key" if items[0]["loc"][-1:] == ("[key]",) else "input"
    sentence = [f"{what} should be {' or '.join(kinds)}"] if kinds else []
    return " or ".join([*sentence, *others])


def shown(items: Sequence[Any]) -> str:
    """Return the rejected value, shortened."""
    text = repr(items[0].get("input"))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _keys(path: Path, root: type[BaseModel]) -> list[str]:
    """Return the field names below a path; those of the root if it does not lead to a model."""
    found = models_at(path, root) or [root]
    return [field.alias or name for model in found for name, field in model.model_fields.items()]
