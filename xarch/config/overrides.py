"""Values from the environment and the command line, as layers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from xarch.config.provenance import Assignment, Layer
from xarch.config.schema import RunConfig
from xarch.config.shapes import joined_keys
from xarch.config.validation import validated
from xarch.config.yaml_text import MAX_DEPTH, Path, parse_yaml
from xarch.errors import UsageError

VARIABLES: dict[str, Path] = {
    "XARCH_SEED": ("seed",),
    "XARCH_BUDGET": ("budget",),
    "XARCH_DEVICE": ("runtime", "device"),
    "XARCH_THREADS": ("runtime", "threads"),
    "XARCH_PRECISION": ("runtime", "precision"),
}
PREFIX = "XARCH_SET__"


def environment_layer(environ: Mapping[str, str] | None = None) -> Layer:
    """Return values of ``XARCH_SEED`` and similar, and ``XARCH_SET__a__b=c`` for any key ``a.b``."""
    environ = os.environ if environ is None else environ
    found = [typed(path, environ[name], f"env {name}") for name, path in VARIABLES.items() if environ.get(name)]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name != PREFIX:
            found.append(typed(tuple(name.removeprefix(PREFIX).split("__")), environ[name], f"env {name}"))
    return Layer("environment", tuple(found))


def flags_layer(overrides: Mapping[str, Any]) -> Layer:
    """Return values of options with their own flag (``--seed``), by dotted key; None means not set."""
    found = [
        Assignment(joined_keys(tuple(k.split("."))), v, "command line") for k, v in overrides.items() if v is not None
    ]
    return Layer("command line", tuple(found))


def sets_layer(sets: Sequence[str]) -> Layer:
    """Return the values of ``--set a.b=c`` items.

    Raises:
        UsageError: ``=`` or the key is missing.
    """
    found = []
    for item in sets:
        key, equals, text = item.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            raise UsageError(
                f"--set {item!r} should look like stages.hidden.units=2M", "key, '=', value, without spaces"
            )
        found.append(typed(path, text, f"--set {item}"))
    return Layer("--set", tuple(found))


def typed(path: Path, text: str, origin: str) -> Assignment:
    """Parse a value as YAML; invalid YAML, such as ``*`` or ``@x``, is text.

    Raises:
        UsageError: the key has too many parts.
    """
    if len(path) > MAX_DEPTH:
        raise UsageError(f"a key has at most {MAX_DEPTH} parts, this one has {len(path)} ({origin[:60]}...)")
    try:
        value = parse_yaml(text, origin).data if text.strip() else ""
    except UsageError:
        value = text
    return Assignment(joined_keys(path), value, origin, text)


def with_sets(config: RunConfig, sets: Sequence[str], keys: Sequence[str]) -> RunConfig:
    """Return a finished run's configuration with ``--set`` values for what is repeated; null removes a named entry.

    Args:
        keys: first parts of the keys that may be changed.

    Raises:
        UsageError: another key, or a value that the schema rejects.
    """
    data = config.model_dump(mode="json", by_alias=True)
    for assignment in sets_layer(sets).assignments:
        first, *rest = (str(part) for part in assignment.path)
        if first not in keys or not rest:
            raise UsageError(
                f"{assignment.origin}: a finished run can change {', '.join(keys)} only", f"a key below {keys[0]}."
            )
        place = data[first]
        for part in rest[:-1]:
            place = place.setdefault(part, {})
        if assignment.value is None and isinstance(place.get(rest[-1]), dict):
            del place[rest[-1]]
        else:
            place[rest[-1]] = assignment.value
    return validated(RunConfig, data, "--set ")
