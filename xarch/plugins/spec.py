"""Lazy declarations: what a plugin offers, without importing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

API_VERSION = 1

KINDS = ("source", "target", "objective", "stage", "recipe", "data", "export", "metric", "teacher")


@dataclass(frozen=True)
class Spec:
    """One registered thing.

    Attributes:
        kind, name: what and how it is called; ``plugin:name`` picks one where two plugins claim a name.
        load: "module:attribute" imported on first use ("" for pure data, see ``data``).
        summary: one line for ``xarch list``.
        plugin: entry-point name of the owner; filled in by the loader.
        accepts: for targets and metrics: families; for sources: nothing.
        produces: for sources and targets: family of the model they give.
        extra: xarch extra (or pip requirement) that brings what it needs.
        needs: importable module names without which it is shown as "missing-extra".
        api: version of the plugin API it was written for.
        data: kind-specific facts, e.g. the pinned package of a named teacher or the YAML of a recipe.
    """

    kind: str
    name: str
    load: str
    summary: str
    plugin: str = ""
    accepts: tuple[str, ...] = ()
    produces: str = ""
    extra: str = ""
    needs: tuple[str, ...] = ()
    api: int = API_VERSION
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def qualified(self) -> str:
        """``plugin:name``."""
        return f"{self.plugin}:{self.name}"
