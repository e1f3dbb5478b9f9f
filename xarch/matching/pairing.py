"""Resolves the matches of a stage to pairs, and checks that the two sides of each can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from xarch.config.schema import Match, Stage
from xarch.contracts.data import TensorInfo
from xarch.contracts.local import Site, sites_of
from xarch.contracts.model import Student
from xarch.contracts.objective import MatchContext
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError
from xarch.matching.build import BuiltMatch, build_match
from xarch.matching.layers import Found, expand
from xarch.matching.references import (
    BATCH,
    STUDENT,
    MissingTap,
    Reference,
    check_placeholders,
    near,
    parse,
    seen_tensors,
)
from xarch.matching.right import RightSide
from xarch.registry.registry import Registry

__all__ = ["Pair", "Reference", "pair_phases", "pair_stage"]


@dataclass(frozen=True)
class Masks:
    """Keys, in the batch as seen by the student, of the masks of positions to count; None counts all.

    Attributes:
        objective, connector: mask of each. They differ if the connector combines positions, e.g. to one value a sample.
    """

    objective: str | None = None
    connector: str | None = None

    @property
    def keys(self) -> set[str]:
        """Both keys."""
        return {key for key in (self.objective, self.connector) if key}


@dataclass(frozen=True)
class Pair:
    """One comparison of a stage: the student side, the right side, and how they are compared.

    Attributes:
        match: name of the match.
        label: name in figures: the match name, or "MATCH.TAP" if one match makes several pairs (of a site).
        site: the site of a local stage, None in a global stage.
        student: the student's taps under their local (site) or full names; several only if joined.
        right: right side: empty, one reference under "", or several by student tap (joined), by right tap (joined with
            a pattern) or by teacher (``*:TAP``).
        masks: masks before the first phase and in every phase: its batch steps may give or remove one.
        aux: argument -> reference of a further value.
        settings: the match as configured.
        objective_parameters, connector_parameters: parameter counts of its modules.
        coupled: why this pair forbids splitting the stage's batches, "" if it does not.
        units: unit of its value.
    """

    match: str
    label: str
    site: str | None
    student: Mapping[str, Tap]
    right: Mapping[str, Reference]
    masks: tuple[Masks, ...]
    aux: Mapping[str, Reference]
    settings: Match
    objective_parameters: int = 0
    connector_parameters: int = 0
    coupled: str = ""
    units: str = ""

    @property
    def parameters(self) -> int:
        """Number of parameters of both modules, which train with the stage and are dropped after it."""
        return self.objective_parameters + self.connector_parameters

    @property
    def joined(self) -> bool:
        """Whether the objective receives a mapping of student taps instead of one value."""
        return self.settings.join

    @property
    def several(self) -> bool:
        """Whether the objective receives a mapping as its right side instead of one value."""
        return bool(self.right) and "" not in self.right

    def reads(self, model: str) -> set[str]:
        """Return the taps that this pair reads from a model ("" for the main teacher), or batch keys including its
        masks."""
        found = {r.name for r in (*self.right.values(), *self.aux.values()) if r.model == model}
        return found.union(*(masks.keys for masks in self.masks)) if model == BATCH else found

    def declared(self) -> tuple[Tap | Mapping[str, Tap], Tap | Mapping[str, Tap] | None]:
        """Return the declarations of both sides, from which objectives and connectors are built."""
        left: Any = dict(self.student) if self.joined else next(iter(self.student.values()))
        right: Any = None
        if self.right:
            right = {k: r.tap for k, r in self.right.items()} if self.several else self.right[""].tap
        return left, right


def pair_stage(
    name: str,
    stage: Stage,
    *,
    student: Student,
    teachers: Mapping[str, Mapping[str, Tap]],
    tensors: Mapping[str, TensorInfo],
    mask: str,
    registry: Registry,
    context: MatchContext,
) -> list[Pair]:
    """The proven pairs of a stage, in the order of sites, matches and taps. Objectives and connectors are built on the
    meta device for it; also used while running, after decisions changed the student.

    Args:
        name, stage: the stage and its name, for messages.
        student: on any device; only its declarations are read.
        teachers: name -> taps; "" is the main teacher and absent without one.
        tensors: of a batch after the stage's batch steps, views (``NAME@student``) included.
        mask: key of the family's mask, "" for none.
        registry: of objectives and connectors.
        context: what both are built with; the name of the match is filled in.

    Raises:
        UsageError: a reference or an option is wrong.
        PlanError: a tap or a tensor does not exist, depths differ and nothing says how, layouts cannot be compared or
            sizes differ; the message names both sides.
        PluginError: an objective or a connector raised.
    """
    with torch.device("meta"):
        return [
            pair
            for site in _chosen_sites(name, stage, student)
            for pair in _Pairing(name, stage, student, site, teachers, tensors, mask, registry, context).pairs()
        ]


def pair_phases(
    name: str, phases: Sequence[Stage], tensors: Sequence[Mapping[str, TensorInfo]], **known: Any
) -> list[Pair]:
    """The pairs of a stage at its start, with those of its phases proven too. What couples a batch in one phase couples
    it in all.

    Args:
        name: of the stage.
        phases, tensors: its settings before the first phase and in every phase, and what is in a batch then.
        known: the other arguments of :func:`pair_stage`.

    Raises:
        PlanError: an option that a phase changes gives an objective other parameters.
        UsageError, PluginError: see :func:`pair_stage`.
    """
    found = []
    for number, (settings, there) in enumerate(zip(phases, tensors, strict=True)):
        try:
            found.append(pair_stage(name, settings, tensors=there, **known))
        except (UsageError, PlanError) as error:
            if not number:
                raise
            raise type(error)(f"stages.{name}.phases[{number - 1}]: {error.what}", error.hint) from error
    pairs = []
    for first, *later in zip(*found, strict=True):
        if any(other.parameters != first.parameters for other in later):
            raise PlanError(
                f"stages.{name}.phases: an option of matches.{first.match} changes how many parameters it has, and "
                "they are made once for the stage",
                "use a stage of its own for other modules",
            )
        every = (first, *later)
        coupled = next((p.coupled for p in every if p.coupled), "")
        pairs.append(replace(first, coupled=coupled, masks=tuple(p.masks[0] for p in every)))
    return pairs


def _chosen_sites(name: str, stage: Stage, student: Student) -> list[Site | None]:
    if stage.scope == "global":
        if stage.sites != "*":
            raise UsageError(
                f"stages.{name}.sites: {stage.sites!r} selects nothing in a global stage, which runs the whole student",
                f"--set stages.{name}.scope=local, or leave `sites` out",
            )
        return [None]
    sites = sites_of(student)
    chosen: list[Site | None] = [site for key, site in sites.items() if fnmatchcase(key, stage.sites)]
    if not sites:
        raise PlanError(
            f"stages.{name}: a local stage trains sites, and this student has none", f"--set stages.{name}.scope=global"
        )
    if not chosen:
        raise PlanError(
            f"stages.{name}.sites: {stage.sites!r} matches none of the {len(sites)} sites",
            near(stage.sites, sites, "sites"),
        )
    return chosen


@dataclass(frozen=True)
class _Pairing:
    """Pairs the matches of a stage at one site, or of a global stage."""

    stage_name: str
    stage: Stage
    student: Student
    site: Site | None
    teachers: Mapping[str, Mapping[str, Tap]]
    tensors: Mapping[str, TensorInfo]
    mask: str
    registry: Registry
    context: MatchContext

    def pairs(self) -> Iterator[Pair]:
        for key, match in self.stage.matches.items():
            yield from self._pairs_of(key, match, f"stages.{self.stage_name}.matches.{key}")

    def _pairs_of(self, key: str, match: Match, where: str) -> list[Pair]:
        available = self.student.taps() if self.site is None else self.site.taps
        sides = RightSide(self.student, self.site, self.teachers, self.tensors, match, where)
        address = parse(match.teacher, f"{where}.teacher", list(self.teachers))
        found = self._student_taps(match, available, where)
        _refuse_useless(match, self.stage, found, where)
        drafts = []
        for group in [found] if match.join else [[f] for f in found]:
            right = sides.right(address, group)
            if right is None:
                continue
            aux = {
                argument: sides.single(parse(ref, f"{where}.aux.{argument}", list(self.teachers)), group, argument)
                for argument, ref in match.aux.items()
            }
            taps = {f.name: available[f.name] for f in group}
            drafts.append(Pair(key, key, self.site.name if self.site else None, taps, right, (), aux, match))
        if not drafts:
            raise PlanError(
                f"{where}: none of the student's taps {', '.join(f.name for f in found[:3])} is of a layer that the "
                "map names",
                "correct `map`, or remove the match with null",
            )
        if len(drafts) > 1:
            drafts = [replace(d, label=f"{key}.{next(iter(d.student))}") for d in drafts]
        return [self._proven(d, where) for d in drafts]

    def _student_taps(self, match: Match, available: Mapping[str, Tap], where: str) -> list[Found]:
        patterns = [match.student] if isinstance(match.student, str) else match.student
        found: dict[str, Found] = {}
        for pattern in patterns:
            check_placeholders(pattern, f"{where}.student")
            if "{i}" in pattern:
                raise UsageError(
                    f"{where}.student: {{i}} denotes the teacher's layer", "use {j} for the student's layer"
                )
            here = expand(pattern, available)
            if not here:
                raise MissingTap(
                    f"{where}: {'the student' if self.site is None else f'site {self.site.name}'} has no tap "
                    f"{pattern!r}",
                    near(pattern, available, "taps"),
                )
            found.update({f.name: f for f in here})
        return list(found.values())

    def _proven(self, pair: Pair, where: str) -> Pair:
        """Return the pair completed with the properties of its built objective and connector."""
        context = replace(self.context, match=pair.match)
        built = build_match(pair, self.registry, context, where)
        with self.registry.guard(built.spec, where):
            masks = self._masks(pair, built, where)
            parts = [m for m in (built.connector, built.objective) if m is not None]
            coupling = [type(m).__name__ for m in parts if m.couples == "batch"]
            units = built.objective.units
        return replace(
            pair,
            masks=(masks,),
            objective_parameters=count_of(built.objective),
            connector_parameters=count_of(built.connector) if built.connector else 0,
            coupled=f"matches.{pair.match} ({coupling[0]}) compares the samples of a batch" if coupling else "",
            units=units,
        )

    def _masks(self, pair: Pair, built: BuiltMatch, where: str) -> Masks:
        match, tensors = pair.settings, seen_tensors(self.tensors)
        if match.mask is None:
            return Masks()
        if match.mask == "auto":
            known = self.mask if self.mask in tensors else ""
            return _fitting(known, tensors[known].layout, pair, built) if known else Masks()
        address = parse(match.mask, f"{where}.mask")
        if address is None or address.model != BATCH:
            raise UsageError(f"{where}.mask: {match.mask!r} should be batch:KEY, auto or null", None)
        key = address.name
        if key not in tensors:
            raise PlanError(f"{where}.mask: batches have no tensor {key!r}", near(key, tensors, "tensors"))
        layout = tensors[key].layout
        masks = _fitting(key, layout, pair, built)
        if not masks.keys:
            wrong = next(tap for tap in built.left if not built.objective.masks(tap, layout))
            raise PlanError(
                f"{where}.mask: {key!r} ({layout}) does not select positions of {wrong.name} ({wrong.layout}) for "
                f"objective {match.objective!r}",
                "a mask has the first dimensions of the tap, e.g. BL for BLD; `mask: null` counts everything",
            )
        return masks


def _refuse_useless(match: Match, stage: Stage, found: Sequence[Found], where: str) -> None:
    """Refuse settings that would change nothing."""
    if stage.scope == "global" and match.map not in (None, "target") and all(f.layer is None for f in found):
        raise UsageError(f"{where}.map: it pairs layers, but {found[0].name} is of no layer", "remove `map`")
    if not match.detach and not any(str(ref).startswith(f"{STUDENT}:") for ref in (match.teacher, *match.aux.values())):
        raise UsageError(
            f"{where}.detach: only values of the student on the right side have gradients, and there are none",
            "remove `detach`, or compare with student:TAP",
        )


def _fitting(key: str, layout: str, pair: Pair, built: BuiltMatch) -> Masks:
    """Return the mask for the modules of a pair whose positions it selects."""
    before = next(iter(pair.student.values()))
    return Masks(
        objective=key if all(built.objective.masks(tap, layout) for tap in built.left) else None,
        connector=key if built.connector is not None and built.connector.masks(before, layout) else None,
    )


def count_of(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in module.parameters())
