"""The parameters that a stage trains, by group; shared by the plan and the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xarch.config.schema import Group, Stage
from xarch.contracts.model import Student
from xarch.errors import UsageError

CONNECTORS, OBJECTIVES = "connectors", "objectives"
"""Parameter groups that do not belong to the student."""


def select(student: Student, trains: Mapping[str, Group]) -> dict[str, str]:
    """Return student parameter -> the group it trains in; for a parameter in several groups, the last one.

    Raises:
        UsageError: a group does not exist.
    """
    groups = student.param_groups()
    chosen: dict[str, str] = {}
    for name in trains:
        if name in (CONNECTORS, OBJECTIVES):
            continue
        if name not in groups:
            known = ", ".join([*sorted(groups), CONNECTORS, OBJECTIVES])
            raise UsageError(f"the student has no parameter group {name!r}", f"groups: {known}")
        chosen |= dict.fromkeys(groups[name], name)
    return chosen


def learning(phases: Sequence[Stage]) -> dict[str, Group]:
    """Return the groups that train in some phase of a stage, with their settings at its beginning."""
    first = phases[0].trains
    first = {CONNECTORS: Group(), OBJECTIVES: Group(), **first}
    rates = {name: max(s.trains.get(name, group).lr for s in phases) for name, group in first.items()}
    return {name: group for name, group in first.items() if rates[name] > 0}


def trained_groups(student: Student, phases: Sequence[Stage]) -> dict[str, str]:
    """Return student parameter -> its group, for those that train in some phase."""
    groups = learning(phases)
    return {name: group for name, group in select(student, phases[0].trains).items() if group in groups}
