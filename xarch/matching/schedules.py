"""Numbers and settings that change over a stage, as pure functions of its progress, so there is no state to save."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from xarch.config.schema import Phase, Ramp, Stage
from xarch.config.validation import refusal, validated
from xarch.errors import UsageError


def value_at(value: float | Ramp, progress: float) -> float:
    """Return a number at ``progress`` (0 to 1) of its stage; ramps span the whole stage, whatever its budget."""
    if not isinstance(value, Ramp):
        return value
    at = min(max(progress, 0.0), 1.0)
    if value.shape == "exponential":
        if value.start <= 0 or value.end <= 0:
            return value.start if at == 0 else value.end
        return value.start * (value.end / value.start) ** at
    if value.shape == "cosine":
        at = 0.5 * (1 - math.cos(math.pi * at))
    return value.start + (value.end - value.start) * at


def ramps_in(options: Mapping[str, Any]) -> dict[str, Ramp]:
    """Return the options given as ``{start, end[, shape]}``."""
    keys = {"start", "end"}
    return {
        name: Ramp.model_validate(value)
        for name, value in options.items()
        if isinstance(value, Mapping) and keys <= value.keys() <= keys | {"shape"}
    }


class ScheduledOptions:
    """Options of an objective, some of which may be ramps.

    Args:
        model: the objective's ``Options``.
        options: as configured.

    Raises:
        pydantic.ValidationError: an option is unknown or has an invalid value, at the start or the end of its ramp.
    """

    def __init__(self, model: type[BaseModel], options: Mapping[str, Any]) -> None:
        self.ramps = ramps_in(options)
        fixed = {name: value for name, value in options.items() if name not in self.ramps}
        self._start = model.model_validate({**fixed, **{k: r.start for k, r in self.ramps.items()}})
        model.model_validate({**fixed, **{k: r.end for k, r in self.ramps.items()}})

    def at(self, progress: float) -> BaseModel:
        """Return the options at ``progress`` (0 to 1) of the stage."""
        if not self.ramps:
            return self._start
        return self._start.model_copy(update={k: value_at(r, progress) for k, r in self.ramps.items()})


def scheduled_options(model: type[BaseModel], options: Mapping[str, Any], where: str) -> ScheduledOptions:
    """Return :class:`ScheduledOptions`, with errors for users.

    Args:
        where: configuration key of the options, for messages.

    Raises:
        UsageError: names the invalid option, its value, and the available options.
    """
    for name, value in options.items():
        if isinstance(value, Mapping) and {"start", "end"} <= value.keys() <= {"start", "end", "shape"}:
            validated(Ramp, value, f"{where}.{name}")
    try:
        return ScheduledOptions(model, options)
    except ValidationError as e:
        raise refusal(e, model, options, where) from e


def phase_index(phases: list[Phase], progress: float) -> int:
    """Return how many phases have begun at ``progress`` (0 to 1); 0 before the first."""
    return sum(progress >= phase.start for phase in phases)


def phase_settings(stage: Stage, where: str) -> list[Stage]:
    """Return the stage's settings before its first phase and in each phase; each phase extends the previous ones.

    Args:
        where: configuration key of the stage, for messages.

    Raises:
        UsageError: a phase changes a fixed setting, or names something that the stage does not have.
    """
    settings = [stage]
    tree = stage.model_dump(mode="python")
    for number, phase in enumerate(sorted(stage.phases, key=lambda p: p.start)):
        tree = copy.deepcopy(tree)
        for key, value in phase.set.items():
            _change(tree, key, value, f"{where}.phases[{number}].set")
        settings.append(validated(Stage, tree, f"{where}.phases[{number}].set gives {where}"))
    return settings


def _change(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    match key.split("."):
        case ["matches", name] if value is None:
            _member(tree["matches"], name, where, "match")
            tree["matches"][name]["weight"] = 0.0
        case ["matches", name, "weight"]:
            _member(tree["matches"], name, where, "match")["weight"] = value
        case ["matches", name, "options", option]:
            _member(tree["matches"], name, where, "match")["options"][option] = value
        case ["batch", "steps", name] if value is None:
            _member(tree["batch"]["steps"], name, where, "batch step")
            del tree["batch"]["steps"][name]
        case ["batch", "steps", name]:
            tree["batch"]["steps"][name] = value
        case ["batch", "steps", name, option]:
            _member(tree["batch"]["steps"], name, where, "batch step")
            tree["batch"]["steps"][name] = {**(tree["batch"]["steps"][name] or {}), option: value}
        case ["trains", name, "lr"]:
            _member(tree["trains"], name, where, "parameter group")["lr"] = value
        case _:
            raise UsageError(
                f"{where}: {key!r} cannot change within a stage",
                "a phase can set matches.NAME, matches.NAME.weight, matches.NAME.options.X, batch.steps.NAME[.X] or "
                "trains.GROUP.lr; anything else requires a separate stage",
            )


def _member(members: dict[str, Any], name: str, where: str, what: str) -> Any:
    if name not in members:
        raise UsageError(f"{where}: the stage has no {what} {name!r}", f"it has {', '.join(members) or 'none'}")
    return members[name]
