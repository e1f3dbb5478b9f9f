"""Objectives and connectors by name."""

from __future__ import annotations

from xarch.contracts.connector import Connector
from xarch.contracts.objective import Objective
from xarch.registry.registry import Registry


def objective_class(registry: Registry, name: str, layout: str) -> type[Objective]:
    """The implementation of an objective for student values of ``layout`` (after a connector: of what that gives).

    Raises:
        UsageError: nobody declares it.
        PluginError: two plugins declare it for this layout, or it cannot be imported.
    """
    found: type[Objective] = registry.resolve(registry.get("objective", name, layout))
    return found


def connector_class(registry: Registry, name: str) -> type[Connector]:
    """A connector by name; raises as :func:`objective_class`."""
    found: type[Connector] = registry.resolve(registry.get("connector", name))
    return found
