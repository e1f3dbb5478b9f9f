"""What a running stage has at hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xarch.config.schema import RunConfig
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.batch import Batch
from xarch.contracts.data import BatchStream
from xarch.contracts.model import Solver, Student, Teacher
from xarch.contracts.objective import Objective
from xarch.contracts.stage import StageContext
from xarch.engine.checkpoint import StageCheckpoints
from xarch.engine.curve import QualityCurve
from xarch.engine.distributed import Distributed
from xarch.engine.events import Reporter
from xarch.engine.metrics import MetricsLog
from xarch.engine.signals import StopRequest
from xarch.engine.teacher import TeacherFeed
from xarch.engine.terms import Guard
from xarch.errors import Interrupted
from xarch.matching.pairing import Pair
from xarch.planning.plan import PlannedStage

OpenStream = Callable[[str, int, Mapping[str, Any], int], BatchStream]
"""(split, samples, sample, seed) -> stream."""


@dataclass
class EngineContext(StageContext):
    """The engine's implementation of :class:`StageContext`; stage kinds of plugins see only the public part."""

    name: str
    options: Mapping[str, Any]
    seed: int
    student: Student
    teacher: Teacher
    planned: PlannedStage
    config: RunConfig
    adapter: TargetAdapter
    pairs: list[Pair]
    objective: Callable[[str], type[Objective]]
    guard: Guard
    device: torch.device
    ranks: Distributed
    feed: TeacherFeed
    checkpoints: StageCheckpoints
    metrics: MetricsLog
    curve: QualityCurve
    reporter: Reporter
    stop: StopRequest
    open_stream: OpenStream
    autocast: Callable[[], contextlib.AbstractContextManager[object]]
    say: Callable[[str], None]
    metrics_start: int
    curve_start: int
    data_counters: dict[str, int]
    on_step: Callable[[int, Mapping[str, float]], object]

    def batches(self) -> BatchStream:
        stage = self.planned
        stream = self.open_stream("train", stage.batch, stage.sample, self.seed)
        return _OnDevice(stream, self.device, self.data_counters)

    def validation(self, samples: int) -> list[Batch]:
        """Fixed batches of the validation split; a trial run takes few."""
        samples = min(samples, 2) if self.config.tiny else samples
        stream = self.open_stream("validation", self.planned.batch, self.planned.sample, self.seed)
        out: list[Batch] = []
        for batch in stream:
            out.append(batch.to(self.device))
            if sum(len(b) for b in out) >= samples:
                break
        return out

    def log(self, step: int, **metrics: float) -> None:
        self.metrics.row(self.planned.folder, step, metrics)

    def progress(self, done: int, total: int, message: str = "") -> None:
        self.reporter.progress(done, total, message)
        if self.ranks.any(self.stop.received is not None):
            raise Interrupted(f"stopped by {self.stop.received or 'another process'} in stage {self.name}")

    def solver(self, site: str) -> Solver:
        return self.adapter.solver(self.student, site, self.options)


class _OnDevice(BatchStream):
    """A stream whose batches are moved to the device and whose counters are shared with the run."""

    def __init__(self, stream: BatchStream, device: torch.device, counters: dict[str, int]) -> None:
        self.stream, self.device, self.shared = stream, device, counters
        self.watches_losses = stream.watches_losses

    def __next__(self) -> Batch:
        batch = next(self.stream).to(self.device)
        self.shared.update(self.stream.counters())
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)
        # A stage that resumes after its last step reads no batch and still tells what its data were.
        self.shared.update(self.stream.counters())

    def take_losses(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        self.stream.take_losses(batch.to("cpu"), losses)

    def facts(self) -> dict[str, Any]:
        return self.stream.facts()

    def counters(self) -> dict[str, int]:
        return self.stream.counters()
