"""What is known about one plugin after the attempt to load it."""

from __future__ import annotations

from dataclasses import dataclass

STATES = ("ok", "disabled", "incompatible", "missing-extra", "failed", "conflict")


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One row of ``xarch plugins list``.

    Attributes:
        name: entry-point name, or ``DISTRIBUTION/NAME`` where two distributions use the same one.
        origin: where it was found: ``module`` of an entry point, or the path of a plugin file.
        distribution, version: who ships it; empty for a plugin file.
        state: one of :data:`STATES`.
        detail: why it is in that state: the last traceback line, the missing extra, the other owner.
        hooks: hooks it implements.
        declared: number of things it registered.
        load_ms: time to import and register it, in milliseconds.
        output: what it printed while it was imported.
        heavy: heavy libraries it imported while it was registered; there should be none.
        traceback: full text of the failure, or "".
    """

    name: str
    origin: str
    distribution: str = ""
    version: str = ""
    state: str = "ok"
    detail: str = ""
    hooks: tuple[str, ...] = ()
    declared: int = 0
    load_ms: float = 0.0
    output: str = ""
    heavy: tuple[str, ...] = ()
    traceback: str = ""

    @property
    def loaded(self) -> bool:
        """Whether its hooks and declarations are in use."""
        return bool(self.hooks) and self.state in ("ok", "missing-extra", "conflict")

    @property
    def owner(self) -> str:
        """How errors name it: plugin, distribution and version."""
        ships = f"{self.distribution} {self.version}".strip() or self.origin
        return f"plugin {self.name!r} ({ships})"
