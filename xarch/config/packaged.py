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
FAMILIES = "families"


def packaged(registry: Registry, name: str) -> Spec:
    """Return the method or recipe called ``name``.

    Raises:
        UsageError: it is not declared; suggests close names.
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
    """Return the YAML of a packaged recipe or method.

    Raises:
        UsageError, PluginError: see :func:`packaged`.
    """
    from xarch.registry.loader import get_registry

    registry = get_registry()
    return str(registry.resolve(packaged(registry, name)))


def target_option(name: str, rest: str) -> str | None:
    """Return the option that ``rest`` sets in ``target: NAME:REST``; None if ``name`` is no target that has one, or is
    the plugin of a target called ``rest``."""
    from xarch.registry.loader import get_registry

    targets = get_registry().specs("target")
    if any((s.plugin, s.name) == (name, rest) for s in targets):
        return None
    return next((s.data["reference"] for s in targets if s.name == name and "reference" in s.data), None)


def method_of(name: str) -> Method | None:
    """Return the head of the method called ``name``, or of the one that the recipe of this name extends; None if
    neither is a method.

    Raises:
        UsageError: a file is invalid.
    """
    for following, document in reversed(_documents(name)):
        if _has_head(document):
            return read_method(packaged_text(following), f"method {following}")
    return None


def without_teacher(name: str) -> str:
    """Return the method that trains a student without a teacher: ``name``, its control, the control of that, and so on;
    ``name`` if none of them does.

    Raises:
        UsageError: a file is invalid.
    """
    seen: list[str] = []
    following = name
    while following and following not in seen:
        seen.append(following)
        head = method_of(following)
        if head is not None and not head.needs_teacher:
            return following
        following = head.control if head is not None else ""
    return name


def layer_of(label: str, document: Document) -> Layer:
    """Return the configuration in a document, after checking and removing a method head."""
    if _has_head(document):
        head_of(document, label)
    return without_head(Layer.of_document(label, document))


def without_head(layer: Layer) -> Layer:
    """Return a layer without the method head, whose families the configuration keeps; ``method: NAME`` names its base
    like ``recipe: NAME``."""
    kept = []
    for a in layer.assignments:
        if a.path == (HEAD, FAMILIES):
            kept.append(Assignment((FAMILIES,), a.value, a.origin, a.text))
        elif a.path == (HEAD,) and a.value is not None:
            kept.append(Assignment(("recipe",), a.value, a.origin, a.text))
        elif a.path[0] != HEAD:
            kept.append(a)
    origins = {path: origin for path, origin in layer.origins.items() if path[:1] != (HEAD,)}
    return Layer(layer.label, tuple(kept), origins)


def _has_head(document: Document) -> bool:
    return isinstance(document.data, dict) and isinstance(document.data.get(HEAD), dict)


def _documents(name: str) -> list[tuple[str, Document]]:
    """Return (name, file) of a recipe or method and its bases, lowest first."""
    found: list[tuple[str, Document]] = []
    following: str | None = name
    while following is not None:
        seen = [before for before, _ in reversed(found)]
        if following in seen or len(seen) >= MAX_PACKAGED:
            raise UsageError(f"recipes extend each other in a cycle: {' > '.join([*seen, following])}")
        document = parse_yaml(packaged_text(following), f"recipe {following}")
        found.insert(0, (following, document))
        below = without_head(Layer.of_document(f"recipe {following}", document)).get(("recipe",))
        following = str(below.value) if below is not None and below.value else None
    return found


def packaged_layers(name: str) -> tuple[Layer, ...]:
    """Return the layers of a recipe or method and its bases, lowest first.

    Raises:
        UsageError: they extend each other in a cycle, or one of them does not exist.
    """
    layers = []
    for following, document in _documents(name):
        layer = layer_of(f"{'method' if _has_head(document) else 'recipe'} {following}", document)
        kept = tuple(a for a in layer.assignments if a.path != ("recipe",))
        layers.append(Layer(layer.label, kept, layer.origins))
    return tuple(layers)


def packaged_tree(name: str) -> dict[str, Any]:
    """Return a packaged recipe or method, merged with its bases, as plain data without validation."""
    merged = Merged()
    for layer in packaged_layers(name):
        merged.apply(layer)
    return merged.tree
