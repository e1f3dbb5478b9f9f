"""Shapes of the JSON files of a run, for those who read them: what a damaged or foreign file lacks is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from xarch.errors import UsageError

Figures = dict[str, float | None]
M = TypeVar("M", bound=BaseModel)


class _Record(BaseModel):
    """Keys that readers rely on; others are allowed."""

    model_config = ConfigDict(extra="allow", strict=True)


class Status(_Record):
    """status.json."""

    state: Literal["planned", "running", "interrupted", "failed", "done"]
    reason: str = ""
    resume: str = ""


class EvaluationRecord(_Record):
    """eval.json."""

    metric: str
    higher_is_better: bool | None = None
    unit: str = ""
    teacher: Figures | None = None
    student: Figures
    gated: Figures = {}
    baselines: dict[str, Figures] = {}
    variants: dict[str, Figures] = {}
    exports: dict[str, Figures] = {}
    controls: dict[str, dict[str, Any]] = {}


class GraphParity(_Record):
    """A graph of parity.json."""

    cases: list[dict[str, Any]] = []
    top1_agreement: float | None = None
    measures: dict[str, dict[str, Any]] = {}


class Parity(_Record):
    """parity.json."""

    passed: bool
    graphs: dict[str, GraphParity]


class GraphProfile(_Record):
    """A graph of profile.json."""

    variant: str
    reads: dict[str, str]
    gives: dict[str, str]
    free: list[str]


class ProfileFacts(_Record):
    """The profile of profile.json."""

    name: str
    provider: str


class ProfileRecord(_Record):
    """profile.json."""

    profile: ProfileFacts
    graphs: dict[str, GraphProfile]


class Absent(_Record):
    """absent.json, for a teacher that was not exported."""

    reason: str


def typed(model: type[M], data: Any, path: Path) -> dict[str, Any]:
    """Check the content of a JSON file and return it unchanged.

    Raises:
        UsageError: a key is missing or has a value of another type; names both and the file.
    """
    try:
        model.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{path} is not as xarch writes it: {where + ': ' if where else ''}{first['msg']}",
            "restore it from a copy, or convert again",
        ) from e
    return dict(data)
