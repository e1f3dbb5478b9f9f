"""Which teacher can become which student: sources and targets joined by family, with the stages of a recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from xarch.errors import XarchError
from xarch.registry.declare import Spec
from xarch.registry.registry import Registry

ANY_FAMILY = "*"
WORDS = {"ok": "ready", "missing-extra": "needs", "conflict": "conflict", "incompatible": "incompatible"}


@dataclass(frozen=True, slots=True)
class ConversionPair:
    """One row of ``xarch list pairs``."""

    source: str
    target: str
    family: str
    recipe: str
    stages: tuple[str, ...]
    exports: tuple[str, ...]
    status: str
    detail: str
    owner: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def pairs(registry: Registry) -> list[ConversionPair]:
    """Every pair that agrees in family, whether it is ready to be used or not."""
    exports = tuple(dict.fromkeys(s.name for s in registry.specs("export")))
    rows = []
    for target in registry.specs("target"):
        recipe, stages, problem = _recipe(registry, target)
        for source in registry.specs("source"):
            family = source.produces
            if family != ANY_FAMILY and family not in target.accepts:
                continue
            status, detail = _status(registry, source, target, problem)
            family = ", ".join(target.accepts) if family == ANY_FAMILY else family
            owner = _owner(registry, target)
            rows.append(
                ConversionPair(source.name, target.name, family, recipe, stages, exports, status, detail, owner)
            )
    return rows


def _status(registry: Registry, source: Spec, target: Spec, problem: str) -> tuple[str, str]:
    for spec in (source, target):
        state, detail = registry.status(spec)
        if state != "ok":
            return WORDS[state], detail
    return ("failed", problem) if problem else ("ready", "")


def _recipe(registry: Registry, target: Spec) -> tuple[str, tuple[str, ...], str]:
    """(name, stages, problem) of the recipe that makes this target; its own default comes first.

    A recipe says which target it is for in ``student.target``; the one that names no teacher is the general one.
    """
    found: list[tuple[bool, bool, str, tuple[str, ...]]] = []
    problem = ""
    for spec in registry.specs("recipe"):
        try:
            tree = _tree(registry, spec)
        except XarchError as e:
            if spec.plugin == target.plugin:
                problem = f"recipe {spec.name}: {e.what}"
            continue
        student = tree.get("student")
        if isinstance(student, dict) and student.get("target") in (target.name, target.qualified):
            stages = tree.get("stages")
            names = tuple(stages) if isinstance(stages, dict) else ()
            found.append((not spec.data.get("default", False), "teacher" in tree, spec.name, names))
    if not found:
        return "", (), problem
    _, _, name, names = min(found)
    return name, names, ""


def _tree(registry: Registry, spec: Spec) -> dict[str, Any]:
    from xarch.config.packaged import packaged_tree

    return packaged_tree(spec.qualified)


def _owner(registry: Registry, spec: Spec) -> str:
    info = next(p for p in registry.plugins() if p.name == spec.plugin)
    return f"{info.distribution} {info.version}".strip() or info.origin
