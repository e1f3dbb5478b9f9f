"""The configuration of a study: arms × seeds of one conversion."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from xarch.config.base import Model
from xarch.config.validation import validated
from xarch.config.yaml_text import MAX_BYTES, parse_yaml
from xarch.errors import UsageError
from xarch.files.bounded_json import read_bounded

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")


class Arm(Model):
    """One variant of the conversion."""

    set: dict[str, Any] = Field(default_factory=dict, description="dotted configuration key -> value; null removes")


class ExecutorConfig(Model):
    """Where the runs of a study are computed."""

    name: Literal["local", "submitit", "ray"] = "local"
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="of the executor: submitit's update_parameters (and `cluster`), ray's init (and `resources`)",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data


class StudyConfig(Model):
    """Arms × seeds of conversions, compared in one table.

    A file may begin with ``extends: OTHER.yaml``, a study beside it: its own keys are laid over the other's, and null
    leaves one out, e.g. an arm.
    """

    base: str | dict[str, Any] = Field(
        default_factory=dict, description="base of all runs: a YAML file, a recipe or method, or a configuration"
    )
    arms: dict[str, Arm] = Field(default_factory=dict, description="name -> {set: {key: value}}")
    axes: dict[str, list[Any] | dict[str, Arm]] = Field(
        default_factory=dict,
        description="dotted key -> values, or name -> {value's name: {set: {key: value}}}; all combinations run",
    )
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    seeded: list[str] = Field(
        default_factory=list,
        description="further dotted keys that get the seed as value, e.g. data.options.subset; in texts, {seed} is it",
    )
    control: str | None = Field(None, description="arm with which the others are compared, seed by seed")
    metrics: list[str] = Field(
        default_factory=list, description="figures of eval.json, including gated ones; default: the headline"
    )
    against: str | None = Field(
        None,
        description="figure over which the page draws the first of `metrics` as one curve for every arm, through its "
        "points on the axes, e.g. the share of computation that ran",
    )
    jobs: int = Field(1, ge=1, description="number of parallel runs")
    threads: int = Field(1, ge=1, description="CPU threads per run, unless set in the configuration")
    executor: ExecutorConfig = Field(default_factory=ExecutorConfig, description="local, submitit or ray")

    @model_validator(mode="after")
    def _complete(self) -> StudyConfig:
        if not self.arms and not self.axes:
            raise ValueError("give `arms`, `axes` or both: a study needs something to compare")
        wrong = [name for name in self.arms if not NAME.match(name)]
        if wrong:
            raise ValueError(f"arm {wrong[0]!r}: a name is letters, digits, '.', '_', '+' and '-'")
        empty = [key for key, values in self.axes.items() if not values]
        if empty:
            raise ValueError(f"axes.{empty[0]} has no value")
        points = [arm for values in self.axes.values() if isinstance(values, dict) for arm in values.values()]
        keys = [key for arm in (*self.arms.values(), *points) for key in arm.set] + list(self.axes)
        if "seed" in keys:
            raise ValueError("`seed` cannot be an arm or axis value; use `seeds`")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is listed twice")
        return self


def load_study(study: Path | str | Mapping[str, Any]) -> tuple[StudyConfig, str, Path]:
    """Load a study from a YAML file or plain data.

    Returns:
        The study, its name (from the file) and the folder against which relative paths are resolved.

    Raises:
        UsageError: a file, key or value is invalid.
    """
    if isinstance(study, Mapping):
        return validated(StudyConfig, study, "study"), "study", Path()
    path = Path(study)
    return validated(StudyConfig, _extended(path, ()), f"{path.name}: "), path.stem, path.parent


def _extended(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """Return the content of a study file over that of the one it extends.

    Args:
        below: files that lead to this one.

    Raises:
        UsageError: see :func:`load_study`; or the files extend each other.
    """
    if path.resolve() in below:
        raise UsageError(f"{path}: extends: {' and '.join(sorted({p.name for p in below}))} extend each other")
    data = parse_yaml(read_yaml(path), path.name).data
    if not isinstance(data, dict):
        raise UsageError(f"{path}: the top level must be a mapping, not {type(data).__name__}")
    other = data.pop("extends", None)
    if other is None:
        return data
    if not isinstance(other, str):
        raise UsageError(f"{path}: extends: give a study file, not {other!r}")
    beside = path.parent / other
    extended = _extended(beside, (*below, path.resolve()))
    base = extended.get("base")
    if isinstance(base, str) and (beside.parent / base).is_file():
        extended["base"] = os.path.relpath(beside.parent / base, path.parent)
    return _over(extended, data)


def _over(lower: dict[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return mappings laid over each other; null removes, and what an arm sets to null stays null."""
    made = dict(lower)
    for key, value in upper.items():
        if value is None and key != "control":
            made.pop(key, None)
        elif key != "set" and isinstance(value, Mapping) and isinstance(made.get(key), Mapping):
            made[key] = _over(made[key], value)
        elif key == "set" and isinstance(value, Mapping):
            made[key] = {**(made.get(key) or {}), **value}
        else:
            made[key] = value
    return made


def read_yaml(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        UsageError: it cannot be read, or is too large.
    """
    try:
        return read_bounded(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not UTF-8 text: {e.reason} at byte {e.start}") from e
