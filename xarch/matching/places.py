"""Places: names with the same meaning in every family, so that methods need no architecture-specific names.

A family maps them to its own names (``Family.places``): ``logits``, ``hidden`` (one for every layer), ``labels``.
"""

from __future__ import annotations

from collections.abc import Mapping

from xarch.config.schema import Match, Stage
from xarch.matching.references import ALL, BATCH, COPIES, MAIN, RANDOM, STUDENT

LAYER = "{}"
"""Placeholder for the layer in a place."""
Places = Mapping[str, str]


def at_places(stage: Stage, student: Places, teachers: Mapping[str, Places]) -> Stage:
    """Return a global stage with places replaced by taps and batch keys; a local stage is unchanged.

    Args:
        student: places of the student's family.
        teachers: name of a teacher ("" the main one) -> places of its family.
    """
    if stage.scope != "global":
        return stage
    return stage.model_copy(update={"matches": {k: _match(m, student, teachers) for k, m in stage.matches.items()}})


def _match(match: Match, student: Places, teachers: Mapping[str, Places]) -> Match:
    def left(name: str) -> str:
        return student.get(name, name).replace(LAYER, "{j}")

    def right(text: str) -> str:
        model, colon, name = text.rpartition(":")
        if model == BATCH:
            return text
        if model in (STUDENT, *COPIES):
            return f"{model}:{left(name)}"
        known = teachers.get(MAIN if model == RANDOM else model)
        if model == ALL:
            known = next((places for name, places in teachers.items() if name != MAIN), None)
        given = student.get(name, "")
        if not model and given.startswith(f"{BATCH}:"):
            return given
        return f"{model}{colon}{(known or {}).get(name, name).replace(LAYER, '{i}')}"

    taps = [match.student] if isinstance(match.student, str) else match.student
    named = [left(tap) for tap in taps]
    changed = {
        "student": named[0] if isinstance(match.student, str) else named,
        "teacher": None if match.teacher is None else right(match.teacher),
        "aux": {argument: right(text) for argument, text in match.aux.items()},
    }
    return match.model_copy(update=changed)
