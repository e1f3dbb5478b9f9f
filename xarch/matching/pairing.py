"""Resolve the matches of a stage to pairs of taps and prove that they can be compared."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from xarch.config.schema import Match, Stage
from xarch.contracts.model import Site, Student
from xarch.contracts.objective import Objective
from xarch.contracts.tap import Tap
from xarch.errors import PlanError
from xarch.registry.registry import Registry

DATA_TAP = "batch:"


@dataclass(frozen=True)
class Pair:
    """One student tap and what it is compared with.

    Attributes:
        site: the site of a local stage, None in a global stage.
        student: the student's tap; ``local`` is its name inside the site (equal to the full name globally).
        teacher: the teacher's tap, a tap of kind "data" for a tensor of the batch, or None.
        match: the configuration it came from; ``index`` its place among the stage's matches.
    """

    site: str | None
    local: str
    student: Tap
    teacher: Tap | None
    match: Match
    index: int
    aux: Mapping[str, str]

    @property
    def label(self) -> str:
        """Short name used in metrics."""
        return self.local

    @property
    def teacher_taps(self) -> set[str]:
        """Full names of teacher taps this pair reads."""
        names = {ref.removeprefix("teacher:") for ref in self.aux.values() if ref.startswith("teacher:")}
        if self.teacher is not None and self.teacher.kind != "data":
            names.add(self.teacher.name)
        return names


def _near(name: str, names: Mapping[str, Any], what: str) -> str:
    close = difflib.get_close_matches(name, list(names), 3)
    shown = close or sorted(names)[:8]
    return f"{what}: {', '.join(shown)}" + (" ..." if len(names) > len(shown) else "")


def _teacher_tap(ref: str | None, site: str | None, teacher: Mapping[str, Tap], where: str) -> Tap | None:
    if ref is None:
        return None
    if ref.startswith(DATA_TAP):
        return Tap(ref.removeprefix(DATA_TAP), "data", "batch")
    name = ref if site is None or ref in teacher else f"{site}.{ref}"
    if name not in teacher:
        raise PlanError(f"{where}: the teacher has no tap {name!r}", _near(name, teacher, "taps near it"))
    return teacher[name]


def pair_taps(
    name: str,
    stage: Stage,
    *,
    sites: Mapping[str, Site],
    student: Mapping[str, Tap],
    teacher: Mapping[str, Tap],
    objective: Callable[[str], type[Objective]],
) -> list[Pair]:
    """Pairs of a gradient stage, in site order.

    Args:
        name, stage: the stage and its name, for messages.
        sites: the student's sites.
        student, teacher: taps by full name.
        objective: objective name -> class.

    Raises:
        PlanError: a tap does not exist, layouts cannot be compared, or sizes differ; the message names both sides.
    """
    pairs: list[Pair] = []
    chosen = [s for s in sites if fnmatchcase(s, stage.sites)] if stage.scope == "local" else [None]
    if stage.scope == "local" and not chosen:
        raise PlanError(
            f"stages.{name}.sites: {stage.sites!r} matches none of the {len(sites)} sites",
            _near(stage.sites, sites, "sites"),
        )
    for site in chosen:
        for index, match in enumerate(stage.matches):
            where = f"stages.{name}.matches[{index}]"
            available = sites[site].taps if site is not None else student
            found = [k for k in available if fnmatchcase(k, match.student)]
            if not found:
                raise PlanError(
                    f"{where}: {'site ' + site if site else 'the student'} has no tap {match.student!r}",
                    _near(match.student, available, "taps"),
                )
            kind = objective(match.objective)
            for local in found:
                implied = local if match.teacher == "same" else match.teacher
                right = _teacher_tap(implied, site, teacher, where)
                left = available[local]
                if not kind.takes(left, right):
                    accepted = ", ".join(f"{a} / {b}" for a, b in sorted(kind.accepts))
                    raise PlanError(
                        f"{where}: objective {match.objective!r} cannot compare student {left.name} "
                        f"({left.layout}) with teacher {right.name if right else 'nothing'} "
                        f"({right.layout if right else 'none'})",
                        f"it takes {accepted}",
                    )
                wrong = kind.check(left, right)
                if wrong:
                    raise PlanError(
                        f"{where}: shapes differ between student {left.name} and "
                        f"teacher {right.name if right else ''}: {wrong}",
                        "choose taps of equal size or an objective with a projector (`xarch list objectives`)",
                    )
                aux = {key: _aux_ref(ref, site, teacher, f"{where}.aux.{key}") for key, ref in match.aux.items()}
                pairs.append(Pair(site, local, left, right, match, index, aux))
    return pairs


def _aux_ref(ref: str, site: str | None, teacher: Mapping[str, Tap], where: str) -> str:
    if ref.startswith(DATA_TAP):
        return ref
    if ref.startswith("teacher:"):
        tap = _teacher_tap(ref.removeprefix("teacher:"), site, teacher, where)
        assert tap is not None
        return f"teacher:{tap.name}"
    raise PlanError(f"{where}: {ref!r} is neither teacher:TAP nor batch:KEY")


def pairs_of(name: str, stage: Stage, student: Student, teacher_taps: dict[str, Tap], registry: Registry) -> list[Pair]:
    """The proven pairs of a gradient stage; also used while running, after decisions changed the student."""

    def objective(wanted: str) -> type[Objective]:
        kind: type[Objective] = registry.resolve(registry.get("objective", wanted))
        return kind

    return pair_taps(
        name,
        stage,
        sites=student.sites(),
        student=student.taps(),
        teacher=teacher_taps,
        objective=objective,
    )
