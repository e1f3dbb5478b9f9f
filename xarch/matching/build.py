"""Builds the objective and the connector of a pair: on the meta device for the plan, on a real device for the
engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xarch.contracts.connector import Connector
from xarch.contracts.objective import MatchContext, Objective
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError, XarchError
from xarch.matching.schedules import ScheduledOptions, scheduled_options
from xarch.registry.declare import Spec
from xarch.registry.registry import Registry

if TYPE_CHECKING:
    from xarch.matching.pairing import Pair


@dataclass(frozen=True)
class BuiltMatch:
    """The built modules of a pair.

    Attributes:
        connector: between the student's tap and the objective, if any.
        objective: with the options at the stage's start.
        options: the objective's options over the stage.
        left: declaration of the student side that the objective receives, after the connector.
        spec: declaration of the objective: several may share one name for different layouts.
    """

    connector: Connector | None
    objective: Objective
    options: ScheduledOptions
    left: tuple[Tap, ...]
    spec: Spec


def build_match(pair: Pair, registry: Registry, context: MatchContext, where: str) -> BuiltMatch:
    """Build both modules on the current default device.

    Args:
        where: configuration key of the match, for messages.

    Raises:
        UsageError: an option is unknown or has an invalid value.
        PlanError: the two sides cannot be compared.
        PluginError: an objective or a connector raised.
    """
    left: Any
    right: Any
    left, right = pair.declared()
    through = pair.settings.through
    connector: Connector | None = None
    if through is not None:
        if pair.joined:
            raise PlanError(
                f"{where}: `through` supports one student tap, but `join` passes several", "remove one of them"
            )
        spec = registry.get("connector", through.connector, where=f"{where}.through")
        made: type[Connector] = registry.resolve(spec)
        if not {"*", left.layout} & made.accepts:
            raise PlanError(
                f"{where}: connector {through.connector!r} does not support student {left.name} ({left.layout})",
                f"supported: {', '.join(sorted(made.accepts))}",
            )
        chosen = scheduled_options(made.Options, through.options, f"{where}.through.options")
        if chosen.ramps:
            raise UsageError(
                f"{where}.through.options.{next(iter(chosen.ramps))}: options of a connector cannot change",
                "give one number; options of objectives and weights of matches may be {start, end}",
            )
        options = chosen.at(0.0)
        with registry.guard(spec, where), _located(context, where):
            connector = made(left, right, options, context)
            left = connector.tap
    spec = registry.get("objective", pair.settings.objective, _flat(left)[0].layout, where=f"{where}.objective")
    kind: type[Objective] = registry.resolve(spec)
    scheduled = scheduled_options(kind.Options, pair.settings.options, f"{where}.options")
    with registry.guard(spec, where), _located(context, where):
        _comparable(pair, kind, left, right, where)
        _weighed(pair, context, where)
        objective = kind(left, right, scheduled.at(0.0), context)
    return BuiltMatch(connector, objective, scheduled, _flat(left), spec)


@contextlib.contextmanager
def _located(context: MatchContext, where: str) -> Iterator[None]:
    """Name the stage in errors of an objective or a connector, which knows its match only: ``matches.kd: …`` becomes
    ``stages.distil.matches.kd: …``, in what is wrong and in what to set."""
    own = f"matches.{context.match}"
    try:
        yield
    except XarchError as e:
        if not e.what.startswith(own):
            raise
        hint = e.hint if e.hint is None else e.hint.replace(f"set {own}", f"set {where}")
        raise type(e)(where + e.what.removeprefix(own), hint) from e


def _flat(side: Tap | Mapping[str, Tap] | None) -> tuple[Tap, ...]:
    if side is None:
        return ()
    return (side,) if isinstance(side, Tap) else tuple(side.values())


def _comparable(pair: Pair, kind: type[Objective], left: Any, right: Any, where: str) -> None:
    name = pair.settings.objective
    if pair.joined and not kind.joins:
        raise PlanError(f"{where}: objective {name!r} supports one student tap at a time", "remove `join`")
    by_teacher = pair.several and not pair.joined
    if by_teacher and not kind.ensembles:
        raise PlanError(
            f"{where}: objective {name!r} supports one teacher at a time", "use one match per teacher: TEACHER:TAP"
        )
    _arguments(pair, kind, where)
    rights: tuple[Tap | None, ...] = _flat(right) or (None,)
    if pair.joined and pair.several and set(pair.right) == set(pair.student):
        compared: list[tuple[Tap, Tap | None]] = [(left[key], pair.right[key].tap) for key in left]
    else:
        compared = [(one, other) for one in _flat(left) for other in rights]
    for one, other in compared:
        said = f"{other.name} ({other.layout})" if other else "nothing"
        if not kind.takes(one, other):
            accepted = ", ".join(f"{a} / {b}" for a, b in sorted(kind.accepts))
            raise PlanError(
                f"{where}: objective {name!r} cannot compare student {one.name} ({one.layout}) with {said}",
                f"supported: {accepted or 'nothing'}; a connector (`through`) can change the layout",
            )
        wrong = kind.check(one, other)
        if wrong:
            raise PlanError(
                f"{where}: shapes differ between student {one.name} and {said}: {wrong}",
                "choose taps of equal size, or add a connector, e.g. `through: linear`",
            )


def _arguments(pair: Pair, kind: type[Objective], where: str) -> None:
    """A further value that an objective does not take would be dropped without a word."""
    name, known = pair.settings.objective, kind.arguments()
    said = f"it takes {', '.join(sorted(known)) or 'none'}"
    for key in pair.aux:
        if key not in known:
            raise PlanError(f"{where}.aux: objective {name!r} takes no further value {key!r}", said)
    missing = [key for key, needed in known.items() if needed and key not in pair.aux]
    if missing:
        raise PlanError(
            f"{where}.aux: objective {name!r} needs a further value {missing[0]!r}",
            f"{said}; write aux: {{{missing[0]}: TAP}}",
        )


def _weighed(pair: Pair, context: MatchContext, where: str) -> None:
    if pair.several and not pair.joined and not any(context.weights.get(name, 1.0) for name in pair.right):
        raise PlanError(
            f"{where}.teacher: {pair.settings.teacher!r} averages teachers that all have the weight 0",
            f"give one of them a weight: --set teachers.{next(iter(pair.right))}.weight=1",
        )
