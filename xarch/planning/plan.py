"""The plan: a resolved conversion as pure data. ``xarch convert`` executes exactly this."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from xarch.config.schema import Ramp, RunConfig, Stage

FORMAT = 2


class Record(BaseModel):
    """Base of plan records."""

    model_config = ConfigDict(extra="forbid")


class PlannedTeacher(Record):
    """A teacher, described without its weights."""

    ref: str = Field(description="as the user wrote it")
    resolved: str = Field(description="SCHEME:REF after named teachers are resolved; ema, self or random as they are")
    adapter: str
    title: str
    family: str
    parameters: int
    weight_bytes: int
    facts: dict[str, Any]
    details: dict[str, Any] = {}
    weight: float = Field(1.0, description="where several are averaged")


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
    unused: list[str] = Field(description="tensors of the teacher that are deliberately not read")
    built_from: dict[str, Any] = Field(description="family and facts that it is built from")


class PlannedMatch(Record):
    """A comparison whose two sides were proven to agree."""

    match: str = Field(description="its name in the configuration")
    label: str = Field(description="its name in figures: NAME, or NAME.TAP where the match makes several")
    site: str | None
    student: list[str] = Field(description="full names of student taps; several only if joined")
    right: str = Field(description="what they are compared with, e.g. blocks.3.output, batch:labels; empty for nothing")
    aux: dict[str, str] = Field(default_factory=dict, description="further values, as `right`")
    objective: str
    connector: str | None
    weight: float | Ramp
    mask: str | None = Field(description="key in the batch of the positions that count")
    units: str = Field(description="what one unit of its value means")
    parameters: int = Field(description="of its connector and its objective")
    layouts: tuple[str, str]


class CachePlan(Record):
    """Whether the teacher's outputs are kept on disk, and why."""

    use: bool
    bytes: int
    why: str


class PlannedStage(Record):
    """What follows from a stage's settings, which are those of ``plan.config.stages`` and nowhere else."""

    index: int
    name: str
    folder: str
    sites: list[str]
    matches: list[PlannedMatch]
    trains: dict[str, int] = Field(description="group -> number of parameters; `connectors`, `objectives` among them")
    coupled: str = Field("", description="why a batch may not be cut into micro-batches or spread over processes")
    units: int
    steps: int
    cache: CachePlan
    memory_bytes: int
    memory: dict[str, int] = Field(default_factory=dict, description="parts of memory_bytes")
    seconds: float
    times: dict[str, float] = Field(default_factory=dict, description="parts of the seconds")
    notes: list[str] = Field(default_factory=list, description="what the estimates assume")
    _settings: Stage | None = PrivateAttr(None)

    def bind(self, settings: Stage) -> PlannedStage:
        """Attach the settings it was planned from (the very object of ``plan.config.stages``)."""
        self._settings = settings
        return self

    @property
    def config(self) -> Stage:
        """The stage's settings, with the data's sample and what ``--tiny`` changes filled in."""
        assert self._settings is not None, "a planned stage is used through its plan"
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
        """How often the very same batches are read."""
        return self.config.passes

    @property
    def sample(self) -> dict[str, Any]:
        """What one sample is."""
        return self.config.sample


class PlannedExport(Record):
    """The export for one profile."""

    profile: str
    opset: int
    graphs: list[str]
    operators: dict[str, int] | None = Field(None, description="of a small copy; None if it was not checked")


class Check(Record):
    """Something that planning verifies, or could not verify."""

    name: str
    state: Literal["ok", "not checked", "failed"]
    detail: str


class Estimates(Record):
    """Sums over the run; rough, and said to be so."""

    seconds: float
    parts: dict[str, float] = Field(description="seconds of stages, evaluation, export and bench")
    peak_bytes: int
    disk_bytes: int


class Plan(Record):
    """A whole conversion, ready to run.

    What a stage does, which gates hold and which profiles are exported stand once, in ``config``: that is what the
    engine reads and what plan and report show.
    """

    format: int = FORMAT
    xarch: str
    name: str
    unit: str
    teacher: PlannedTeacher | None = Field(description="what the student comes from; None with `teacher: none`")
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
    command: str
    provenance: dict[str, str]
    plugins: dict[str, str] = Field(description="plugin -> distribution version")
    config: RunConfig

    @model_validator(mode="after")
    def _bind(self) -> Plan:
        for stage in self.stages:
            if stage.name not in self.config.stages:
                raise ValueError(f"the configuration has no stage {stage.name!r}, which is planned")
            stage.bind(self.config.stages[stage.name])
        planned = [export.profile for export in self.export]
        if planned != self.config.export.profiles:
            raise ValueError(f"exports are planned for {planned}, config.export.profiles names others")
        return self
