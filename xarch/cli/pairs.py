"""Possible conversions: registered sources and targets, joined by family."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xarch.errors import XarchError
from xarch.registry.declare import ANY_FAMILY, Spec
from xarch.registry.registry import Registry

WORDS = {"ok": "ready", "missing-extra": "needs", "conflict": "conflict", "incompatible": "incompatible"}


@dataclass(frozen=True, slots=True)
class ConversionPair:
    """One row of ``xarch list pairs``.

    Attributes:
        source, target, family: names; ``family`` is the teacher's.
        recipes: the recipes the target may choose, default first.
        stages: stages of the default recipe.
        exports: profiles the target is registered for; its conformance tests build each.
        status, detail: whether the pair can be used, and if not, why.
        owner: distribution and version that provide the target.
    """

    source: str
    target: str
    family: str
    recipes: tuple[str, ...]
    stages: tuple[str, ...]
    exports: tuple[str, ...]
    status: str
    detail: str
    owner: str

    def to_json(self) -> dict[str, Any]:
        """Return the pair as plain data."""
        return asdict(self)


def pairs(registry: Registry) -> list[ConversionPair]:
    """List every pair with a common family, whether or not it can be used."""
    known = {s.name for s in registry.specs("export")}
    rows = []
    for target in registry.specs("target"):
        recipes = tuple(target.data.get("recipes", ()))
        stages, problem = _stages(recipes)
        exports = tuple(name for name in target.data.get("profiles", ()) if name in known)
        for source in registry.specs("source"):
            family = source.produces
            if family != ANY_FAMILY and not target.serves(family):
                continue
            status, detail = _status(registry, source, target, problem)
            family = ", ".join(target.accepts) if family == ANY_FAMILY else family
            owner = _owner(registry, target)
            rows.append(
                ConversionPair(source.name, target.name, family, recipes, stages, exports, status, detail, owner)
            )
    return rows


def joined(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of pairs, as data: those that differ in the source alone are joined ("gguf, hf"), and then those that
    differ in the target alone."""
    found = [dict(row) for row in rows]
    for side in ("source", "target"):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in found:
            rest = {key: value for key, value in row.items() if key not in (side, "family", "recipes")}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(row)
        found = [{**group[0], side: ", ".join(row[side] for row in group)} for group in groups.values()]
    return found


def _status(registry: Registry, source: Spec, target: Spec, problem: str) -> tuple[str, str]:
    for spec in (source, target):
        state, detail = registry.status(spec)
        if state != "ok":
            return WORDS.get(state, state), detail
    return ("failed", problem) if problem else ("ready", "")


def _stages(recipes: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Return the stages of the default recipe, and the first error in a recipe."""
    from xarch.config.packaged import packaged_tree

    found: tuple[str, ...] = ()
    for name in reversed(recipes):
        try:
            stages = packaged_tree(name).get("stages")
        except XarchError as e:
            return (), f"recipe {name}: {e.what}"
        named = stages.items() if isinstance(stages, dict) else ()
        found = tuple(stage for stage, s in named if not (isinstance(s, dict) and s.get("skip")))
    return found, ""


def _owner(registry: Registry, spec: Spec) -> str:
    info = next(p for p in registry.plugins() if p.name == spec.plugin)
    return f"{info.distribution} {info.version}".strip() or info.origin
