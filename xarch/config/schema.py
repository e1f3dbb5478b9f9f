"""The configuration of a conversion. Unknown keys are errors; every field has a description with its unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_serializer, model_validator

from xarch.config.base import SAMPLES, SECONDS, STEPS, UNITS, Model
from xarch.config.delivery import Evaluate, Export, Report

Device = str


def _without_null(data: Any, *fields: str) -> Any:
    """Return the data of a model without null entries in these mappings: null removes an inherited entry."""
    if not isinstance(data, Mapping):
        return data
    kept = {f: {k: v for k, v in data[f].items() if v is not None} for f in fields if isinstance(data.get(f), Mapping)}
    return {**data, **kept}


class Ramp(Model):
    """A number that changes over a stage: ``start`` at its first step, ``end`` at its last."""

    start: float
    end: float
    shape: Literal["linear", "cosine", "exponential"] = "linear"


class Through(Model):
    """A connector between the student tap and the objective."""

    connector: str = Field(description="name of a registered connector, e.g. linear")
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _name(cls, data: Any) -> Any:
        return {"connector": data} if isinstance(data, str) else data


class Match(Model):
    """A student tap, the right side it is compared with, and how.

    References on the right: ``same``, ``TAP`` of the teacher, ``TEACHER:TAP`` of one of ``teachers``, ``*:TAP`` of each
    of them, ``student:TAP``, ``ema:TAP``, ``self:TAP`` (the student at the stage's start), ``random:TAP`` (the
    teacher's architecture with random weights), ``batch:KEY``, null.
    """

    student: str | list[str] = Field(
        min_length=1, description="student taps: name, glob, list, or with {j} for the student's layer"
    )
    teacher: str | None = Field("same", description="right side, with {i} for the teacher's layer")
    map: Literal["target", "even", "last"] | dict[int, int] | None = Field(
        None, description="student layer j -> teacher layer i: target (its own map, the default), even, last or {j: i}"
    )
    join: bool = Field(False, description="pass all student taps to the objective together instead of one by one")
    through: Through | None = Field(None, description="connector, trained with the stage and dropped after it")
    objective: str = Field(description="name of a registered objective")
    weight: float | Ramp = 1.0
    mask: str | None = Field("auto", description="`batch:KEY`, null for none, or `auto`: the family's, where it fits")
    detach: bool = Field(True, description="stop gradients into a right side from the student")
    aux: dict[str, str] = Field(default_factory=dict, description="further values: argument -> reference as above")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the objective; a number may be {start, end}"
    )


class LearningRateSchedule(Model):
    """A registered schedule and its options."""

    model_config = ConfigDict(extra="allow", validate_default=True)

    name: str = "wsd"

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @property
    def options(self) -> dict[str, Any]:
        """Everything except the name, for the schedule's options model."""
        return dict(self.model_extra or {})


class Optimiser(Model):
    """Optimiser and learning-rate schedule."""

    algorithm: str = Field("adamw", description="registered optimiser: adamw, sgd, lamb, muon, ...")
    lr: float = Field(1e-3, gt=0, le=1e6, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0, description="maximum gradient norm (per site in a local stage); 0 = off")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the algorithm, e.g. {betas: [0.9, 0.95]}"
    )
    wrap: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict, description="optimiser wrappers, e.g. {sam: {rho: 0.05}}"
    )
    schedule: LearningRateSchedule = Field(default_factory=LearningRateSchedule)
    warmup: float = Field(0.1, ge=0, le=1, description="fraction of the steps for linear warm-up from 0")
    final: float = Field(0.0, ge=0, description="learning rate at the end, as a fraction of the peak")

    @model_validator(mode="before")
    @classmethod
    def _wrappers(cls, data: Any) -> Any:
        return _without_null(data, "wrap")


class Group(Model):
    """How one parameter group trains."""

    lr: float = Field(1.0, ge=0, description="multiple of the stage's learning rate")
    weight_decay: float | None = Field(None, ge=0, description="overrides the stage's weight decay")


class BatchConfig(Model):
    """Samples per optimiser step, and batch steps applied to them."""

    size: int = Field(1, ge=1, le=SAMPLES, description="samples per optimiser step")
    steps: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict, description="batch steps in order: registered name -> its options; null removes one"
    )

    @model_validator(mode="before")
    @classmethod
    def _size(cls, data: Any) -> Any:
        if isinstance(data, str):
            raise ValueError("input should be a number of samples or {size: 100, steps: {…}}")
        return {"size": data} if isinstance(data, int) else _without_null(data, "steps")


class Phase(Model):
    """Changes some settings from a given share of the stage on; optimiser and schedule continue."""

    model_config = ConfigDict(extra="forbid", validate_default=True, populate_by_name=True)

    start: float = Field(alias="from", ge=0, lt=1, description="share of the stage's steps at which it begins")
    set: dict[str, Any] = Field(
        description="dotted keys below the stage: matches.NAME[.weight|.options.X], batch.steps.NAME, trains.GROUP.lr"
    )

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"from": self.start, "set": self.set}


class Validation(Model):
    """Validation on fixed batches before, during and after a stage."""

    samples: int = Field(8, ge=1, le=SAMPLES)
    metric: str | None = Field(None, description="figure of a registered metric; default: the stage's loss")
    every: int | None = Field(
        None, ge=1, le=STEPS, description="optimiser steps between measurements; required by `best`"
    )
    keep: Literal["last", "better", "best"] = Field(
        "better", description="`better`: undo the stage if it got worse; `best`: end with the best measured weights"
    )

    @model_validator(mode="after")
    def _best(self) -> Validation:
        if self.keep == "best" and self.every is None:
            raise ValueError("`keep: best` requires `every`, the optimiser steps between measurements")
        return self


class EMA(Model):
    """A moving average of the trained weights, for the reference ``ema:TAP`` and for the end of the stage."""

    decay: float = Field(0.999, gt=0, lt=1)
    adopt: bool = Field(True, description="validate and end the stage with the averaged weights")

    @model_validator(mode="before")
    @classmethod
    def _decay(cls, data: Any) -> Any:
        return {"decay": data} if isinstance(data, float | int) else data


class Limit(Model):
    """A lower or an upper limit of a figure."""

    min: float | None = None
    max: float | None = None


class Plateau(Model):
    """Plateau criterion: the mean losses of two consecutive windows differ little."""

    window: int = Field(100, ge=1, le=STEPS, description="optimiser steps per window")
    change: float = Field(0.01, gt=0, lt=1, description="relative change between windows below which the loss is flat")


class Until(Model):
    """What ends a gradient stage before its budget is read; its unread budget is not passed on."""

    plateau: Plateau | None = Field(
        None, description="plateau of the loss, e.g. {window: 100, change: 0.01}; the learning rate then decays"
    )
    seconds: float | None = Field(
        None, gt=0, le=SECONDS, description="training seconds; schedules are fitted to them; not reproducible"
    )

    @model_validator(mode="after")
    def _ends(self) -> Until:
        if self.plateau is None and self.seconds is None:
            raise ValueError("give `plateau`, `seconds` or both")
        return self


class Stage(Model):
    """One stage of a conversion."""

    kind: str = Field("gradient", description="gradient, closed_form, or any registered stage kind")
    scope: Literal["local", "global"] = "local"
    skip: bool = False
    optional: bool = Field(False, description="skip the stage if teacher or student lacks a tap that it matches")
    requires: dict[str, Limit] = Field(
        default_factory=dict, description="start only if: SIDE.FIGURE -> {min, max}, e.g. teacher.top1: {min: 0.6}"
    )
    sites: str = Field("*", description="glob pattern of site names, for local stages")
    matches: dict[str, Match] = Field(default_factory=dict, description="name -> match; null removes an inherited one")
    trains: dict[str, Group] = Field(
        default_factory=dict, description="parameter group -> how it trains, including `connectors` and `objectives`"
    )
    share: float | None = Field(None, ge=0, le=1e6, description="share of the run's budget")
    units: int | None = Field(None, ge=0, le=UNITS, description="tokens, images or rays; overrides `share`")
    epochs: float | None = Field(
        None, gt=0, le=1e6, description="passes over the training data, from the data's own size"
    )
    until: Until | None = Field(None, description="end early: {plateau: {window: 100, change: 0.01}, seconds: 20}")
    passes: int = Field(
        1, ge=1, le=1_000_000, description="how many times the same batches are read; they count once per pass"
    )
    batch: BatchConfig = Field(default_factory=BatchConfig, description="a number, or {size: 100, steps: {…}}")
    micro_batch: int | None = Field(
        None,
        ge=1,
        le=SAMPLES,
        description="samples per forward pass; default: the whole batch. Random numbers drawn in forward passes "
        "(dropout, sampled gates) depend on it",
    )
    sample: dict[str, Any] = Field(default_factory=dict, description="form of one sample, e.g. {length: 512}")
    phases: list[Phase] = Field(default_factory=list, description="settings that change during the stage")
    optimiser: Optimiser = Field(default_factory=Optimiser)
    ema: EMA | None = Field(None, description="moving average: a decay, or {decay: 0.999, adopt: true}")
    teacher_cache: Literal["auto", "off", "disk"] = "auto"
    validation: Validation | None = None
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints (a 40th of all, 50 to 1000)"
    )
    log_every: int | None = Field(None, ge=1, description="steps between rows of metrics.jsonl (at most 1000 rows)")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the stage kind or the solver")

    @model_validator(mode="before")
    @classmethod
    def _named_matches(cls, data: Any) -> Any:
        """Name a list of matches m0, m1, ...; drop names that are null."""
        if isinstance(data, Mapping) and isinstance(data.get("matches"), list):
            data = {**data, "matches": {f"m{i}": m for i, m in enumerate(data["matches"])}}
        return _without_null(data, "matches")


class Gate(Limit):
    """A limit on a figure of eval.json; missing it ends the run with exit code 7."""


class Data(Model):
    """Training and held-out data."""

    ref: str = Field("", description="PROVIDER:REF")
    sample: dict[str, Any] = Field(default_factory=dict, description="default for stages, e.g. {length: 512}")
    options: dict[str, Any] = Field(default_factory=dict)
    workers: int = Field(0, ge=0, le=1024, description="processes that prepare samples; 0: none")


class StudentConfig(Model):
    """The student's architecture."""

    target: str = Field("", description="name of a target adapter")
    options: dict[str, Any] = Field(default_factory=dict)


class Runtime(Model):
    """Where and how it runs."""

    device: Device = "auto"
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16 autocast if the device supports it")
    threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads; default: every core this process may use"
    )
    sharding: Literal["auto", "replicate", "fsdp2"] = "auto"
    on_nan: Literal["stop", "retry"] = "stop"
    oom_retries: int = Field(4, ge=0, le=64)
    cache_gb: float = Field(4.0, ge=0, le=1e6, description="maximum size of the teacher cache on disk, GB")
    cache: Literal["run", "shared"] = Field("run", description="shared: one teacher cache for many runs, by sample_id")
    tensorboard: bool = True
    trackers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="trackers of accelerate that get the figures too, with their arguments: {mlflow: {}, wandb: {}}",
    )


class TeacherConfig(Model):
    """A further teacher, addressed as ``NAME:TAP``."""

    ref: str = Field(description="SCHEME:REF, or ema, self, random")
    options: dict[str, Any] = Field(default_factory=dict)
    weight: float = Field(1.0, ge=0, description="weight when several are averaged (`*:TAP`)")

    @model_validator(mode="before")
    @classmethod
    def _ref(cls, data: Any) -> Any:
        return {"ref": data} if isinstance(data, str) else data


MODELS = ("student", "ema", "self", "random", "batch", "*")
"""Names in references that are not teachers."""


class RunConfig(Model):
    """A whole conversion."""

    recipe: str | None = Field(None, description="packaged recipe or method that this configuration extends")
    families: list[str] = Field(default_factory=list, description="student families of the method; none: any")
    teacher: str = Field("", description="SCHEME:REF of the main teacher; `none` to train without one")
    teacher_options: dict[str, Any] = Field(default_factory=dict)
    teachers: dict[str, TeacherConfig] = Field(default_factory=dict, description="further teachers by name")
    student: StudentConfig = Field(default_factory=StudentConfig)
    data: Data = Field(default_factory=Data)
    budget: int = Field(100_000, ge=0, le=UNITS, description="training units (tokens, images, rays) over all stages")
    stages: dict[str, Stage] = Field(default_factory=dict, description="stages in order")
    gates: dict[str, Gate] = Field(default_factory=dict)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    export: Export = Field(default_factory=Export)
    report: Report = Field(default_factory=Report)
    runtime: Runtime = Field(default_factory=Runtime)
    seed: int = Field(0, ge=0)
    tiny: bool = False

    @field_validator("teachers")
    @classmethod
    def _names(cls, teachers: dict[str, TeacherConfig]) -> dict[str, TeacherConfig]:
        taken = [name for name in teachers if name in MODELS or ":" in name]
        if taken:
            raise ValueError(f"a teacher cannot be called {taken[0]!r}: the name is reserved in references")
        return teachers
