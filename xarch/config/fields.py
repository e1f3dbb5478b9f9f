"""Schema lookups: the models at a path, and their field names."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel

from xarch.config.schema import RunConfig
from xarch.config.yaml_text import Path


def models_at(path: Path, root: type[BaseModel] = RunConfig) -> list[type[BaseModel]]:
    """Return the models that a value at ``path`` may be; empty if the schema accepts anything or a plain value."""
    found: list[Any] = [root]
    for key in path:
        found = [inner for kind in found for inner in _step(kind, key)]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _step(kind: Any, key: str | int) -> list[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = next((f for name, f in kind.model_fields.items() if str(key) in (f.alias, name)), None)
        return _alternatives(field.annotation) if field is not None else []
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and len(arguments) == 2:
        return _alternatives(arguments[1])
    if origin is list and arguments and isinstance(key, int):
        return _alternatives(arguments[0])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for part in typing.get_args(annotation) for inner in _alternatives(part)]
    return [annotation]


def field_names(path: Path) -> list[str]:
    """Return the field names directly below ``path``."""
    return sorted({field.alias or name for model in models_at(path) for name, field in model.model_fields.items()})


def deeper_names(path: Path) -> dict[str, Path]:
    """Return field name -> its path, for the fields one model below ``path``."""
    found: dict[str, Path] = {}
    for name in field_names(path):
        for inner in field_names((*path, name)):
            found.setdefault(inner, (*path, name, inner))
    return found
