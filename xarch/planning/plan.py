"""The plan: a resolved conversion as pure data, executed by ``xarch convert``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from xarch.config.schema import Ramp, RunConfig, Stage

FORMAT = 2


class Record(BaseModel):
    """Base of plan records."""

    model_config = ConfigDict(extra="forbid")


class PlannedTeacher(Record):
    """Description of a teacher without its weights."""

    ref: str = Field(description="as the user wrote it")
    resolved: str = Field(description="SCHEME:REF after named teachers are resolved; ema, self or random as they are")
    adapter: str
    title: str
    family: str
    parameters: int
    weight_bytes: int
    facts: dict[str, Any]
    details: dict[str, Any] = {}
    weight: float = Field(1.0, description="weight when several are averaged")


class PlannedStudent(Record):
    """Description of the student, built on the meta device."""

    target: str
    title: str = Field(description="TARGET, or TARGET:MODEL of a target that stands for many models")
    plugin: str
    options: dict[str, Any]
    family: str
    parameters: int
    sites: list[str]
    copied: list[str]
    mapped: list[str]
    new: list[str]
    own: list[str] = Field(default_factory=list, description="tensors that start from the student's own weights")
    unused: list[str] = Field(description="teacher tensors that are deliberately not read")
    built_from: dict[str, Any] = Field(description="family and facts from which it is built")
    traits: dict[str, str] = Field(default_factory=dict, description="what its target says of it besides")


class PlannedMatch(Record):
    """A comparison whose two sides were checked to agree."""

    match: str = Field(description="its name in the configuration")
    label: str = Field(description="its name in figures: NAME, or NAME.TAP if the match makes several")
    site: str | None
    student: list[str] = Field(description="full names of the student taps; several only if joined")
    right: str = Field(description="right side, e.g. blocks.3.output, batch:labels; empty for none")
    aux: dict[str, str] = Field(default_factory=dict, description="further values, like `right`")
    objective: str
    connector: str | None
    weight: float | Ramp
    mask: str | None = Field(description="batch key of the mask over positions")
    units: str = Field(description="unit of its value")
    parameters: int = Field(description="parameters of its connector and objective")
    layouts: tuple[str, str]


class CachePlan(Record):
    """Whether the teacher's outputs are cached on disk, and why."""

    use: bool
    bytes: int
    why: str


class PlannedStage(Record):
    """Values derived from a stage's settings; the settings themselves are only in ``plan.config.stages``."""

    index: int
    name: str
    folder: str
    sites: list[str]
    matches: list[PlannedMatch]
    trains: dict[str, int] = Field(description="group -> number of parameters, including `connectors` and `objectives`")
    coupled: str = Field("", description="why a batch may not be split into micro-batches or across processes")
    units: int
    steps: int
    cache: CachePlan
    memory_bytes: int
    memory: dict[str, int] = Field(default_factory=dict, description="memory_bytes by part")
    seconds: float
    times: dict[str, float] = Field(default_factory=dict, description="seconds by part")
    notes: list[str] = Field(default_factory=list, description="assumptions of the estimates")
    _settings: Stage | None = PrivateAttr(None)

    def bind(self, settings: Stage) -> PlannedStage:
        """Attach the settings it was planned from (the same object as in ``plan.config.stages``)."""
        self._settings = settings
        return self

    @property
    def config(self) -> Stage:
        """The stage's settings, with the data's sample and the changes of ``--tiny`` filled in."""
        assert self._settings is not None, "use a planned stage through its plan"
        return self._settings

    @property
    def kind(self) -> str:
        """The registered stage kind."""
        return self.config.kind

    @property
    def scope(self) -> str:
        """ "local" or "global"."""
        return self.config.scope

    @property
    def batch(self) -> int:
        """Samples per optimiser step."""
        return self.config.batch.size

    @property
    def passes(self) -> int:
        """How many times the same batches are read."""
        return self.config.passes

    @property
    def sample(self) -> dict[str, Any]:
        """Form of one sample."""
        return self.config.sample


class PlannedExport(Record):
    """The export for one profile."""

    profile: str
    opset: int
    graphs: list[str]
    operators: dict[str, int] | None = Field(None, description="operators of a small copy; None if not checked")


class Check(Record):
    """A check made while planning, or why it could not be made."""

    name: str
    state: Literal["ok", "not checked", "failed"]
    detail: str


class Estimates(Record):
    """Rough totals over the run."""

    seconds: float
    parts: dict[str, float] = Field(description="seconds for stages, evaluation, export and bench")
    peak_bytes: int
    disk_bytes: int


class Plan(Record):
    """A whole conversion, ready to run.

    Stage settings, gates and export profiles are stored only in ``config``, which the engine reads and plan and report
    show.
    """

    format: int = FORMAT
    xarch: str
    name: str
    unit: str
    teacher: PlannedTeacher | None = Field(description="main teacher; None with `teacher: none`")
    teachers: dict[str, PlannedTeacher] = Field(description="further teachers by name")
    student: PlannedStudent
    data: dict[str, Any]
    stages: list[PlannedStage]
    metric: str | None
    export: list[PlannedExport]
    checks: list[Check]
    warnings: list[str]
    estimates: Estimates
    device: str
    threads: int
    threads_why: str = Field("", description="why so many: requested, or what other work leaves free")
    command: str
    provenance: dict[str, str]
    plugins: dict[str, str] = Field(description="plugin -> distribution version")
    config: RunConfig

    @model_validator(mode="after")
    def _bind(self) -> Plan:
        for stage in self.stages:
            if stage.name not in self.config.stages:
                raise ValueError(f"the plan has a stage {stage.name!r} that the configuration lacks")
            stage.bind(self.config.stages[stage.name])
        planned = [export.profile for export in self.export]
        if planned != self.config.export.profiles:
            raise ValueError(f"exports are planned for {planned}, but config.export.profiles differs")
        return self
