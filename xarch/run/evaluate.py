"""Held-out data and the run's metric: before training, on the way, and of the finished student."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from xarch.contracts.batch import Batch
from xarch.contracts.data import BatchStream
from xarch.contracts.metric import Evaluation, Metric
from xarch.contracts.model import Student, Teacher
from xarch.engine.distributed import Distributed
from xarch.engine.events import Reporter
from xarch.files.atomic import read_json, write_json
from xarch.files.run_dir import RunDir
from xarch.planning.plan import Plan
from xarch.planning.resolve import Resolved
from xarch.registry.registry import Registry


class Evaluator:
    """Opens the run's data and evaluates students on it; ``teacher`` and ``data`` are set once they are loaded.

    Args:
        plan, run, registry, reporter, ranks: of the run.
        device: where batches go.
        raise_if_stopped: called between batches with what is going on.
    """

    teacher: Teacher
    data: Resolved

    def __init__(
        self,
        plan: Plan,
        run: RunDir,
        registry: Registry,
        reporter: Reporter,
        ranks: Distributed,
        device: torch.device,
        raise_if_stopped: Callable[[str], None],
    ) -> None:
        self.plan, self.config, self.run, self.registry = plan, plan.config, run, registry
        self.reporter, self.ranks, self.device, self.raise_if_stopped = reporter, ranks, device, raise_if_stopped

    def open_stream(self, split: str, samples: int, sample: Mapping[str, Any], seed: int) -> BatchStream:
        """Data of a split, guarded so that a provider's error names its plugin."""
        processor = self.teacher.processor()
        with self.registry.guard(self.registry.get("data", self.data.name), f"open {split}"):
            stream: BatchStream = self.data.adapter.open(
                self.data.ref,
                self.data.options,
                split=split,
                samples=samples,
                sample=sample,
                processors={"teacher": processor, "student": processor},
                seed=seed,
                teacher=self.teacher,
            )
        return stream

    def heldout(self, samples: int) -> Iterable[Batch]:
        """Fixed held-out batches."""
        chosen = self.config.evaluate
        batch = min(chosen.batch, samples)
        stream = self.open_stream("heldout", batch, {**self.config.data.sample, **chosen.sample}, self.config.seed)
        return (b.to(self.device) for b in islice(stream, -(-samples // batch)))

    def measure(self, students: Mapping[str, Student]) -> Evaluation | None:
        """Evaluate on held-out data; None if the family has no metric."""
        samples = self.config.evaluate.samples
        done = 0

        def progress(units: int) -> None:
            nonlocal done
            self.raise_if_stopped("while it evaluated")
            done += 1
            self.reporter.progress(done, -(-samples // self.config.evaluate.batch))

        return self._figures(students, samples, progress)

    def measure_quietly(self, student: Student, samples: int) -> Evaluation | None:
        """Figures of a student on ``samples`` samples, without progress; what the quality curve is made of."""
        return self._figures({"student": student}, samples, lambda units: None)

    def _figures(
        self, students: Mapping[str, Student], samples: int, progress: Callable[[int], None]
    ) -> Evaluation | None:
        if self.plan.metric is None:
            return None
        count = min(samples, 2) if self.config.tiny else samples
        with self.registry.guard(self.registry.get("metric", self.plan.metric), "evaluate"), torch.no_grad():
            evaluation: Evaluation = self._metric.evaluate(
                self.teacher,
                students,
                lambda: self.heldout(count),
                processor=self.teacher.processor(),
                progress=progress,
            )
        return evaluation

    @functools.cached_property
    def _metric(self) -> Metric:
        metric: Metric = self.registry.create("metric", str(self.plan.metric))
        return metric

    def baseline(self, student: Student, folder: Path) -> None:
        """Figures of the student before any gradient step, kept in the stage's folder."""
        file = folder / "evaluation.json"
        if not self.config.evaluate.baseline or self.config.tiny or file.exists() or not self.ranks.main:
            return
        self.reporter.phase("evaluate", "the student before any gradient step")
        found = self.measure({"student": student})
        if found is not None:
            write_json(file, found.student)

    def evaluate(self, student: Student) -> None:
        """Figures of the finished student into eval.json, unless they are there."""
        if not self.ranks.main or self.run.eval_json.exists():
            return
        self.reporter.phase("evaluate", f"{self.plan.metric or 'nothing registered'}")
        found = self.measure({"student": student})
        if found is None:
            return
        for file in sorted(self.run.stages_dir.glob("*/evaluation.json")):
            found.baselines["before training"] = read_json(file)
        write_json(self.run.eval_json, vars(found))
