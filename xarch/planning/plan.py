"""The plan: a resolved conversion as pure data. ``xarch convert`` executes exactly this."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from xarch.config.schema import RunConfig, Stage


class Record(BaseModel):
    """Base of plan records."""

    model_config = ConfigDict(extra="forbid")


class PlannedTeacher(Record):
    """The teacher, described without its weights."""

    ref: str = Field(description="as the user wrote it")
    resolved: str = Field(description="SCHEME:REF after named teachers are resolved")
    adapter: str
    title: str
    family: str
    parameters: int
    weight_bytes: int
    facts: dict[str, Any]
    details: dict[str, Any] = {}


class PlannedStudent(Record):
    """The student on the meta device."""

    target: str
    plugin: str
    options: dict[str, Any]
    family: str
    parameters: int
    sites: list[str]
    copied: list[str]
    mapped: list[str]
    new: list[str]


class PlannedMatch(Record):
    """A pair of taps whose layouts and shapes were proven to agree."""

    site: str | None
    student: str
    teacher: str | None
    objective: str
    weight: Any
    layouts: tuple[str, str]


class CachePlan(Record):
    """Whether the teacher's outputs are kept on disk, and why."""

    use: bool
    bytes: int
    why: str


class PlannedStage(Record):
    """One stage with everything resolved."""

    index: int
    name: str
    folder: str
    kind: str
    scope: str
    config: Stage
    sites: list[str]
    matches: list[PlannedMatch]
    trains: dict[str, int] = Field(description="group -> number of parameters")
    units: int
    steps: int
    passes: int
    batch: int
    sample: dict[str, Any]
    cache: CachePlan
    memory_bytes: int
    seconds: float


class PlannedExport(Record):
    """The export for one profile."""

    profile: str
    opset: int
    graphs: list[str]
    operators: dict[str, int] | None = Field(None, description="of a small copy; None if it was not tried")


class Check(Record):
    """Something that was verified while planning."""

    name: str
    ok: bool
    detail: str


class Estimates(Record):
    """Sums over the run; rough, and said to be so."""

    seconds: float
    peak_bytes: int
    disk_bytes: int


class Plan(Record):
    """A whole conversion, ready to run."""

    format: int = 1
    xarch: str
    name: str
    unit: str
    teacher: PlannedTeacher
    student: PlannedStudent
    data: dict[str, Any]
    stages: list[PlannedStage]
    metric: str | None
    export: list[PlannedExport]
    gates: dict[str, Any]
    checks: list[Check]
    warnings: list[str]
    estimates: Estimates
    device: str
    threads: int
    command: str
    provenance: dict[str, str]
    plugins: dict[str, str] = Field(description="plugin -> distribution version")
    config: RunConfig
