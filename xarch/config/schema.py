"""The configuration of a conversion. Unknown keys are errors; every field says what it means and in which unit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Device = str


class Model(BaseModel):
    """Base: unknown keys are refused, defaults are validated."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class WeightSchedule(Model):
    """A match weight that changes over the stage: ``start`` at its first step, ``end`` at its last."""

    start: float
    end: float
    shape: Literal["linear", "cosine", "exponential"] = "linear"


class Match(Model):
    """One pair of taps to bring together."""

    student: str = Field(description="student tap: local name in a local stage, full name or glob in a global one")
    teacher: str | None = Field("same", description="teacher tap, `batch:KEY`, null, or `same` as the student's")
    objective: str = Field(description="name of a registered objective")
    weight: float | WeightSchedule = 1.0
    aux: dict[str, str] = Field(default_factory=dict, description="further values: argument -> `teacher:TAP|batch:KEY`")
    options: dict[str, Any] = Field(default_factory=dict)


class Optimiser(Model):
    """How weights move, and the schedule."""

    algorithm: Literal["adamw", "muon"] = Field("adamw", description="muon: for matrices of layers; adamw for the rest")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(0.95, ge=0, lt=1, description="of muon")
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0, description="largest gradient norm (per site in a local stage); 0 = off")
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: float = Field(0.1, ge=0, le=1, description="fraction of the steps that warm up linearly from 0")
    decay: float = Field(0.3, ge=0, le=1, description="fraction of the steps that decay (wsd; `until`: cosine too)")
    final: float = Field(0.0, ge=0, description="learning rate at the end, as a fraction of the peak")


class Group(Model):
    """How one parameter group trains."""

    lr: float = Field(1.0, ge=0, description="multiple of the stage's learning rate")
    weight_decay: float | None = Field(None, ge=0, description="overrides the stage's weight decay")


class Validation(Model):
    """Loss on fixed validation batches before and after a stage."""

    samples: int = Field(8, ge=1)
    keep: Literal["last", "better"] = Field("better", description="`better`: undo the stage if the loss rose")


class Plateau(Model):
    """The loss no longer changes: its means over two windows in a row differ by little."""

    window: int = Field(100, ge=1, description="optimiser steps in a window")
    change: float = Field(0.01, gt=0, lt=1, description="relative change from window to window below which it is flat")


class Until(Model):
    """What ends a gradient stage before its budget is read; what is left of the budget is saved."""

    plateau: Plateau | None = Field(None, description="of the loss, e.g. {window: 100, change: 0.01}; then lr decays")
    seconds: float | None = Field(None, gt=0, description="of training; schedules are fitted to them; not repeatable")

    @model_validator(mode="after")
    def _ends(self) -> Until:
        if self.plateau is None and self.seconds is None:
            raise ValueError("give `plateau`, `seconds` or both")
        return self


class Stage(Model):
    """One step of the way from teacher to student."""

    kind: str = Field("gradient", description="gradient, closed_form, or a kind registered by a plugin")
    scope: Literal["local", "global"] = "local"
    skip: bool = False
    optional: bool = Field(False, description="leave the stage out where teacher or student lacks a tap it matches")
    sites: str = Field("*", description="glob over site names, for local stages")
    matches: list[Match] = Field(default_factory=list)
    trains: dict[str, Group] = Field(default_factory=dict, description="parameter group -> how it trains")
    share: float | None = Field(None, ge=0, description="share of the run's budget")
    units: int | None = Field(None, ge=0, description="tokens, images or rays; overrides `share`")
    until: Until | None = Field(None, description="end early: {plateau: {window: 100, change: 0.01}, seconds: 20}")
    passes: int = Field(1, ge=1, description="how often the same units are read; they count once per pass")
    batch: int = Field(1, ge=1, description="samples per optimiser step")
    micro_batch: int | None = Field(None, ge=1, description="samples per forward; default the whole batch")
    sample: dict[str, Any] = Field(default_factory=dict, description="what one sample is, e.g. {length: 512}")
    optimiser: Optimiser = Field(default_factory=Optimiser)
    teacher_cache: Literal["auto", "off", "disk"] = "auto"
    validation: Validation | None = None
    checkpoint_every: int = Field(50, ge=1, description="optimiser steps between checkpoints")
    log_every: int = Field(1, ge=1)
    options: dict[str, Any] = Field(default_factory=dict, description="options of the stage kind or the solver")


class Gate(Model):
    """A limit on a figure of eval.json; missing it ends the run with exit code 7."""

    min: float | None = None
    max: float | None = None


class Data(Model):
    """Training and held-out data."""

    ref: str = Field("text:python-stdlib", description="PROVIDER:REF")
    sample: dict[str, Any] = Field(default_factory=dict, description="default for stages, e.g. {length: 512}")
    options: dict[str, Any] = Field(default_factory=dict)


class CurveConfig(Model):
    """The metric's figures on a few fixed held-out samples while the student trains; the seconds of it do not count."""

    samples: int = Field(2, ge=1, description="held-out samples, the same at every point")
    every: int = Field(100, ge=1, description="optimiser steps between points; every stage also ends with one")
    seconds: float | None = Field(None, gt=0, description="training seconds between points; instead of `every`")


class Evaluate(Model):
    """Held-out evaluation."""

    metric: str | None = Field(None, description="registered metric; default the family's")
    samples: int = Field(16, ge=1, description="held-out samples")
    batch: int = Field(2, ge=1)
    sample: dict[str, Any] = Field(default_factory=dict)
    baseline: bool = Field(True, description="also evaluate the student right after initialisation")
    curve: CurveConfig | None = Field(None, description="quality over training time, e.g. {samples: 2, every: 100}")


class Export(Model):
    """ONNX export."""

    profiles: list[str] = Field(default_factory=lambda: ["cpu"])
    options: dict[str, Any] = Field(default_factory=dict, description="options of the student's export, e.g. prefill")
    parity_samples: int = Field(2, ge=1)
    bench: bool = True


class StudentConfig(Model):
    """The student's architecture."""

    target: str = Field("", description="name of a target adapter")
    options: dict[str, Any] = Field(default_factory=dict)


class Runtime(Model):
    """Where and how it runs."""

    device: Device = "auto"
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16 autocast where the device has it")
    threads: int | None = Field(None, ge=1, description="CPU threads; default every core this process may use")
    sharding: Literal["auto", "replicate", "fsdp2"] = "auto"
    on_nan: Literal["stop", "retry"] = "stop"
    oom_retries: int = Field(4, ge=0)
    cache_gb: float = Field(4.0, ge=0, description="largest teacher cache on disk, GB")
    tensorboard: bool = True


class RunConfig(Model):
    """A whole conversion."""

    recipe: str | None = Field(None, description="packaged recipe this configuration starts from")
    teacher: str = Field("", description="SCHEME:REF")
    teacher_options: dict[str, Any] = Field(default_factory=dict)
    student: StudentConfig = Field(default_factory=StudentConfig)
    data: Data = Field(default_factory=Data)
    budget: int = Field(100_000, ge=0, description="the dial: training units (tokens, images, rays) over all stages")
    stages: dict[str, Stage] = Field(default_factory=dict, description="in order")
    gates: dict[str, Gate] = Field(default_factory=dict)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    export: Export = Field(default_factory=Export)
    runtime: Runtime = Field(default_factory=Runtime)
    seed: int = 0
    tiny: bool = False
