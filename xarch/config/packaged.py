"""Packaged recipes and methods: the YAML files of plugins that a configuration starts from."""

from __future__ import annotations

import difflib
from typing import Any

from xarch.config.method import HEAD, Method, head_of, read_method
from xarch.config.provenance import Assignment, Layer, Merged
from xarch.config.yaml_text import Document, parse_yaml
from xarch.errors import UsageError
from xarch.registry.declare import RESOURCES, Spec
from xarch.registry.registry import Registry

MAX_PACKAGED = 8


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


def method_of(name: str) -> Method | None:
    """The head of the method called ``name``, or of the one that the recipe of this name starts from; None if neither
    is a method.

    Raises:
        UsageError: a file is wrong.
    """
    for following, document in reversed(_documents(name)):
        if _has_head(document):
            return read_method(packaged_text(following), f"method {following}")
    return None


def layer_of(label: str, document: Document) -> Layer:
    """The configuration of a document without the head of a method, which is checked."""
    if _has_head(document):
        head_of(document, label)
    return without_head(Layer.of_document(label, document))


def without_head(layer: Layer) -> Layer:
    """A layer without the head of a method; ``method: NAME`` names what it starts from as ``recipe: NAME`` does."""
    kept = []
    for a in layer.assignments:
        if a.path == (HEAD,) and a.value is not None:
            kept.append(Assignment(("recipe",), a.value, a.origin, a.text))
        elif a.path[0] != HEAD:
            kept.append(a)
    origins = {path: origin for path, origin in layer.origins.items() if path[:1] != (HEAD,)}
    return Layer(layer.label, tuple(kept), origins)


def _has_head(document: Document) -> bool:
    return isinstance(document.data, dict) and isinstance(document.data.get(HEAD), dict)


def _documents(name: str) -> list[tuple[str, Document]]:
    """(name, file) of a recipe or method and those it starts from, lowest first."""
    found: list[tuple[str, Document]] = []
    following: str | None = name
    while following is not None:
        seen = [before for before, _ in reversed(found)]
        if following in seen or len(seen) >= MAX_PACKAGED:
            raise UsageError(f"recipes start from each other without end: {' > '.join([*seen, following])}")
        document = parse_yaml(packaged_text(following), f"recipe {following}")
        found.insert(0, (following, document))
        below = without_head(Layer.of_document(f"recipe {following}", document)).get(("recipe",))
        following = str(below.value) if below is not None and below.value else None
    return found


def packaged_layers(name: str) -> tuple[Layer, ...]:
    """A recipe or method and those it starts from, lowest first.

    Raises:
        UsageError: they start from each other, or one of them does not exist.
    """
    layers = []
    for following, document in _documents(name):
        layer = layer_of(f"{'method' if _has_head(document) else 'recipe'} {following}", document)
        kept = tuple(a for a in layer.assignments if a.path != ("recipe",))
        layers.append(Layer(layer.label, kept, layer.origins))
    return tuple(layers)


def packaged_tree(name: str) -> dict[str, Any]:
    """A packaged recipe or method, with those it starts from, as plain data that was not validated."""
    merged = Merged()
    for layer in packaged_layers(name):
        merged.apply(layer)
    return merged.tree
