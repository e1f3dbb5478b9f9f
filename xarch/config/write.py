"""Writes a configuration as a commented file: every key with its description; unset keys as comments with defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xarch.config.fields import models_at
from xarch.config.provenance import DEFAULT
from xarch.config.yaml_text import Path, dump_yaml

if TYPE_CHECKING:
    from xarch.config.load import LoadedConfig


def render(resolved: LoadedConfig, *, recipes: Sequence[str] = ()) -> str:
    """Return commented YAML: values set by the user or a recipe are active, defaults are commented out.

    Args:
        recipes: names shown if no recipe is chosen.
    """
    given = [tuple(key.split(".")) for key, origin in resolved.provenance.items() if origin != DEFAULT]
    page = _Page(given)
    lines = ["# Show what it will do:  xarch plan FILE      Run it:  xarch convert FILE  (--tiny for a trial)"]
    if recipes and not resolved.config.recipe:
        lines.append(f"# recipes here: {', '.join(recipes)}")
    if resolved.config.recipe:
        lines.append("# A key that is removed here takes the recipe's value; `null` removes a stage, gate or group.")
    lines += page.model(resolved.config, ())
    return "\n".join(lines) + "\n"


class _Page:
    """Writes models as YAML lines; a field's description is printed the first time the field appears."""

    def __init__(self, given: Sequence[tuple[str, ...]]) -> None:
        self.given = {path[:i] for path in given for i in range(1, len(path) + 1)}
        self.described: set[tuple[type[BaseModel], str]] = set()

    def model(self, value: BaseModel, path: Path) -> Iterator[str]:
        """Write the fields of a model, in schema order."""
        kind = type(value)
        first_time = not any(known is kind for known, _ in self.described)
        for name, field in kind.model_fields.items():
            here = (*path, name)
            item = getattr(value, name)
            active = tuple(map(str, here)) in self.given or item != _default(field)
            if active or first_time:
                yield from self.comment(kind, name, field, len(path))
                yield from self.field(item, here, active)

    def comment(self, kind: type[BaseModel], name: str, field: FieldInfo, depth: int) -> Iterator[str]:
        if (kind, name) in self.described:
            return
        self.described.add((kind, name))
        if depth == 0:
            yield ""
        if field.description:
            yield f"{'  ' * depth}# {field.description}"

    def field(self, value: Any, path: Path, active: bool) -> Iterator[str]:
        indent, name = "  " * (len(path) - 1), path[-1]
        if isinstance(value, BaseModel):
            # Empty sections are allowed, so their keys can be uncommented one by one.
            yield f"{indent}{name}:" if active or not indent else f"{indent}# {name}:"
            yield from self.model(value, path)
        elif not active:
            yield f"{indent}# {name}: {_flow(value)}"
        elif isinstance(value, dict) and value and all(isinstance(v, BaseModel) for v in value.values()):
            yield f"{indent}{name}:"
            for key, item in value.items():
                yield from self.entry(key, item, (*path, key))
        elif isinstance(value, list) and value and all(isinstance(v, BaseModel) for v in value):
            yield f"{indent}{name}:"
            for item in value:
                yield f"{indent}  - {_flow(item.model_dump(mode='json', exclude_defaults=True))}"
        else:
            yield f"{indent}{name}: {_flow(value)}"

    def entry(self, key: str, item: BaseModel, path: Path) -> Iterator[str]:
        """Write one named stage, gate or group: on one line if small, else field by field."""
        indent = "  " * (len(path) - 1)
        if not any(models_at((*path, name)) for name in type(item).model_fields):
            yield f"{indent}{_key(key)}: {_flow(item.model_dump(mode='json', exclude_defaults=True))}"
            return
        yield f"{indent}{_key(key)}:"
        yield from self.model(item, path)


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _flow(value: Any) -> str:
    plain = dict(value) if isinstance(value, Mapping) else value
    return dump_yaml(list(plain) if isinstance(plain, tuple) else plain, flow=True).strip()


def _key(key: str) -> str:
    return _flow(key)
