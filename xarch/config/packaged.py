"""Packaged recipes and methods: the YAML files of plugins that a configuration starts from."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from xarch.config.provenance import Assignment, Layer, Merged
from xarch.config.validation import validated
from xarch.config.yaml_text import Document, parse_yaml
from xarch.errors import UsageError
from xarch.registry.declare import RESOURCES, Spec
from xarch.registry.registry import Registry

MAX_PACKAGED = 8
HEAD = "method"
PARENTS = ("recipe", HEAD)
"""Keys that name what a document starts from; ``method`` may also be the head, a mapping."""


class MethodHead(BaseModel):
    """The head of a method: what it is, beside the configuration that it brings."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    title: str
    paper: str = Field("", description="where it comes from, e.g. arXiv:2310.19444")
    families: list[str] = Field(default_factory=list, description="of students it serves; empty for any")
    control: str | None = Field(None, description="recipe or method that it has to beat")
    figures: dict[str, Any] = Field(default_factory=dict, description="what the paper or a run of ours reached")
    summary: str = ""


def packaged(registry: Registry, name: str) -> Spec:
    """The method or recipe called ``name``.

    Raises:
        UsageError: nobody declares it; names what is near.
        PluginError: its plugin did not load, or two plugins declare it.
    """
    _, _, plain = name.rpartition(":")
    known = {kind: [s.name for s in registry.specs(kind)] for kind in RESOURCES}
    found = [kind for kind in ("method", "recipe") if plain in known[kind]]
    if found:
        return registry.get(found[0], name)
    if not known["method"]:
        return registry.get("recipe", name)
    every = sorted({n for names in known.values() for n in names})
    near = difflib.get_close_matches(plain, every, n=1)
    raise UsageError(
        f"there is no method or recipe {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        f"known: {', '.join(every)}",
    )


def packaged_text(name: str) -> str:
    """The YAML of a packaged recipe or method.

    Raises:
        UsageError, PluginError: see :func:`packaged`.
    """
    from xarch.registry.loader import get_registry

    registry = get_registry()
    return str(registry.resolve(packaged(registry, name)))


def method_head(name: str) -> MethodHead | None:
    """The head of a packaged method; None for a recipe.

    Raises:
        UsageError: the head has a wrong key or value.
    """
    label = f"method {name}"
    return head_of(parse_yaml(packaged_text(name), label), label)


def head_of(document: Document, label: str) -> MethodHead | None:
    """The head of a document, if it has one.

    Raises:
        UsageError: it has a wrong key or value.
    """
    head = document.data.get(HEAD) if isinstance(document.data, dict) else None
    return validated(MethodHead, head, f"{label}: {HEAD}") if isinstance(head, dict) else None


def layer_of(label: str, document: Document) -> Layer:
    """The configuration of a document: the head of a method is checked and left out, and ``method: NAME`` names what it
    starts from as ``recipe: NAME`` does."""
    head_of(document, label)
    layer = Layer.of_document(label, document)
    kept = []
    for a in layer.assignments:
        if a.path == (HEAD,) and a.value is not None:
            kept.append(Assignment(("recipe",), a.value, a.origin, a.text))
        elif a.path[0] != HEAD:
            kept.append(a)
    origins = {path: origin for path, origin in layer.origins.items() if path[:1] != (HEAD,)}
    return Layer(label, tuple(kept), origins)


def packaged_layers(name: str) -> tuple[Layer, ...]:
    """A recipe or method and those it starts from, lowest first.

    Raises:
        UsageError: they start from each other, or one of them does not exist.
    """
    layers: list[Layer] = []
    seen: list[str] = []
    following: str | None = name
    while following is not None:
        if following in seen or len(seen) >= MAX_PACKAGED:
            raise UsageError(f"recipes start from each other without end: {' > '.join([*seen, following])}")
        seen.append(following)
        text = packaged_text(following)
        document = parse_yaml(text, f"recipe {following}")
        kind = "method" if isinstance(document.data, dict) and isinstance(document.data.get(HEAD), dict) else "recipe"
        layer = layer_of(f"{kind} {following}", document)
        below = layer.get(("recipe",))
        kept = tuple(a for a in layer.assignments if a.path != ("recipe",))
        layers.insert(0, Layer(layer.label, kept, layer.origins))
        following = str(below.value) if below is not None and below.value else None
    return tuple(layers)


def packaged_tree(name: str) -> dict[str, Any]:
    """A packaged recipe or method, with those it starts from, as plain data that was not validated."""
    merged = Merged()
    for layer in packaged_layers(name):
        merged.apply(layer)
    return merged.tree
