"""Held-out data and the run's metric: before, during and after training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from xarch.contracts.batch import Batch
from xarch.contracts.control import Control
from xarch.contracts.data import Split
from xarch.contracts.metric import Evaluation, EvaluationRequest
from xarch.contracts.model import Student, TapModel, Teacher
from xarch.engine.distributed import Distributed
from xarch.engine.events import Reporter
from xarch.engine.guards import first_nonfinite
from xarch.engine.seeds import restore_rng, rng_state
from xarch.errors import DivergedError, PluginError, UsageError, XarchError
from xarch.files.run_dir import RunDir
from xarch.planning.plan import Plan
from xarch.planning.resolve import Resolved, resolve_metric
from xarch.registry.registry import Registry
from xarch.run.controls import compare, controls_of
from xarch.run.gates import before_export, check, check_export_gates, gateable
from xarch.run.sides import RunSides

TINY_SAMPLES = 2
VARIANT = "variants."
TEACHER, STUDENT = "teacher", "student"


class Evaluator:
    """Evaluates students on a run's data; ``sides`` is set after loading.

    Decisions during training use the split "validation"; "heldout" is for the final figures and for the baseline, the
    student before training.

    Args:
        plan, run, registry, reporter, ranks: those of the run.
        device: device of the batches.
        raise_if_stopped: called between batches with a description of the current activity.
    """

    sides: RunSides

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
        self._metrics: dict[str, Resolved] = {}

    @property
    def teacher(self) -> Teacher | None:
        """The main teacher, unmodified."""
        return self.sides.teacher

    def batches(self, split: Split, samples: int) -> Iterable[Batch]:
        """Return fixed batches of a split, on the run's device, read again at every call."""
        chosen = self.config.evaluate
        size = min(chosen.batch, samples)
        stream = self.sides.open(split, size, {**self.config.data.sample, **chosen.sample}, self.config.seed)
        with self.registry.guard(self.registry.get("data", self.sides.data.name), f"read {split}"):
            try:
                yield from (b.to(self.device) for b in islice(stream, -(-samples // size)))
            finally:
                stream.close()

    def heldout(self, samples: int) -> Iterable[Batch]:
        """Return fixed held-out batches."""
        return self.batches("heldout", samples)

    def measure(
        self,
        students: Mapping[str, TapModel],
        samples: int | None = None,
        *,
        metric: str | None = None,
        split: Split = "heldout",
        quiet: bool = False,
        wants_samples: bool = False,
    ) -> Evaluation | None:
        """Evaluate models; return None without a metric.

        Args:
            students: "student" and other models by name.
            samples: by default as configured.
            metric: by default the run's.
            quiet: without displaying progress or changing the random state.
            wants_samples: whether the samples of the evaluation will be shown.
        """
        name = metric or self.plan.metric
        if name is None:
            return None
        count = self.config.evaluate.samples if samples is None else samples
        count = min(count, TINY_SAMPLES) if self.config.tiny else count
        done = 0

        def progress(units: int) -> None:
            nonlocal done
            self.raise_if_stopped("while it evaluated")
            done += 1
            self.reporter.progress(done, -(-count // self.config.evaluate.batch))

        resolved = self._metric(name)
        models = {**students, **({} if self.sides.viewed is None else {TEACHER: self.sides.viewed})}
        for model in models.values():
            model.spent()
        request = EvaluationRequest(
            teacher=self.sides.viewed,
            students=students,
            batches=lambda: self.batches(split, count),
            processor=self.sides.processors["student"],
            data=self.sides.facts,
            options=resolved.options,
            progress=(lambda units: None) if quiet else progress,
            wants_samples=wants_samples,
        )
        state = rng_state()
        with self.registry.guard(self.registry.get("metric", name), "evaluate"), torch.no_grad():
            try:
                evaluation = resolved.adapter.evaluate(request)
            except XarchError as e:
                if e.exit_code != DivergedError.exit_code:
                    raise
                raise DivergedError(f"{e.what}; first non-finite: {self._origin(request)}", e.hint) from e
        if not isinstance(evaluation, Evaluation):
            raise PluginError(f"metric {name!r} returned {type(evaluation).__name__}, expected an Evaluation")
        add_spent(evaluation, models)
        self._require_numbers(name, evaluation, request)
        if quiet:
            restore_rng(*state)
        return evaluation

    def _require_numbers(self, metric: str, found: Evaluation, request: EvaluationRequest) -> None:
        """Check the figures of an evaluation.

        Raises:
            DivergedError: one is not finite; names the first module that is not, too.
        """
        tables = {"teacher": found.teacher, "student": found.student, **found.baselines}
        for who, figures in tables.items():
            for figure, value in figures.items():
                if not math.isfinite(value):
                    raise DivergedError(
                        f"metric {metric}: {figure} of the {who} is {value}; first non-finite: {self._origin(request)}",
                        "lower the learning rate of the last stage, or replace a damaged teacher",
                    )

    def _origin(self, request: EvaluationRequest) -> str:
        """Return the first part of the models that is not finite on the first batch of an evaluation."""
        batch = next(iter(request.batches()), None)
        models = {"teacher": request.teacher, **request.students}
        for who, model in models.items():
            if model is None or batch is None:
                continue
            found = first_nonfinite(model, batch.seen_by("teacher" if model is request.teacher else "student"))
            if found is not None:
                return f"{found} of the {who}"
        return "the metric; all modules are finite on its first batch"

    def _metric(self, name: str) -> Resolved:
        """Return the run's single instance of a metric, which may cache the teacher's outputs."""
        if name not in self._metrics:
            options = self.config.evaluate.metric_options if name == self.plan.metric else {}
            self._metrics[name] = resolve_metric(self.registry, name, options)
        return self._metrics[name]

    def measure_quietly(self, student: Student, samples: int) -> Evaluation | None:
        """Return figures on ``samples`` validation samples, for the quality curve."""
        return self.measure({"student": student}, samples, split="validation", quiet=True)

    def try_out(self, student: Student) -> None:
        """Check on one validation sample, or held-out one if the data have no others, that the metric supports this
        student and measures all figures with a gate.

        Raises:
            UsageError: a gate, or the validation of a stage, names a figure that the metric does not measure.
            PluginError: the metric failed, or does not say whether a higher value is better of a figure by which a
                stage keeps weights.
        """
        if self.plan.metric is None or not self.ranks.main:
            return
        self.reporter.phase("evaluate", "one sample, to try the metric")
        # All controls have the same figures, and each takes as long as the student.
        controls = dict(islice(self._controls(student).items(), 1))
        split: Split = "heldout" if self.sides.facts.get("samples", {}).get("validation") == 0 else "validation"
        found = self.measure(self._judged(student, controls), 1, split=split, quiet=True)
        assert found is not None
        compare(found, controls)
        check_export_gates(self.config)
        check(gateable(vars(self._with_variants(found))), before_export(self.config.gates))
        self._check_validation(found)

    def _check_validation(self, found: Evaluation) -> None:
        figures = found.of("student")
        for name, stage in self.config.stages.items():
            validation = stage.validation
            if validation is None or validation.metric is None or stage.skip:
                continue
            named = validation.metric
            if named in figures and validation.keep != "last":
                found.higher(named)
            elif named not in figures and not self.registry.has("metric", named):
                raise UsageError(
                    f"stages.{name}.validation.metric: there is no figure {named!r}",
                    f"the run's metric gives {', '.join(sorted(figures))}; or name another registered metric",
                )

    def baseline(self, student: Student, folder: Path) -> None:
        """Evaluate the student before any gradient step, and store the figures in the stage's folder."""
        file = folder / "evaluation.json"
        if not self.config.evaluate.baseline or self.config.tiny or file.exists() or not self.ranks.main:
            return
        self.reporter.phase("evaluate", "the student before any gradient step")
        found = self.measure({"student": student})
        if found is not None:
            self.run.write_json(file, found.student)

    def evaluate(self, student: Student) -> None:
        """Evaluate the finished student and its variants into eval.json, unless already done."""
        if not self.ranks.main or self.run.eval_json.exists():
            return
        self.reporter.phase("evaluate", f"{self.plan.metric or 'no metric'}")
        controls = self._controls(student)
        found = self.measure(self._judged(student, controls), wants_samples=True)
        if found is None:
            return
        compare(found, controls)
        found = self._with_variants(found)
        for file in sorted(self.run.stages_dir.glob("*/evaluation.json")):
            found.baselines["before training"] = self.run.read_json(file)
        self.run.write_json(self.run.eval_json, vars(found))

    def knows_export(self, profile: str) -> bool:
        """Return whether eval.json has the figures of an exported file."""
        return self.run.eval_json.exists() and profile in self.run.read_evaluation().get("exports", {})

    def evaluate_export(self, profile: str, model: TapModel) -> None:
        """Evaluate an exported file into eval.json.

        Args:
            profile: its profile, or PROFILE.POINT for a further operating point.
        """
        self.reporter.phase("evaluate", f"the export {profile}")
        found = self.measure({"student": model})
        if found is not None and self.run.eval_json.exists():
            document = self.run.read_evaluation()
            document.setdefault("exports", {})[profile] = found.student
            self.run.write_json(self.run.eval_json, document)

    def _controls(self, student: Student) -> Mapping[str, Control]:
        return controls_of(self.registry, self.sides, student) if self.config.evaluate.controls else {}

    def _judged(self, student: Student, controls: Mapping[str, Control]) -> dict[str, TapModel]:
        with self.registry.attributed("its variants"):
            variants: Mapping[str, Any] = student.variants()
        beside = {name: control.model for name, control in controls.items()}
        return {"student": student, **beside, **{f"{VARIANT}{name}": model for name, model in variants.items()}}

    @staticmethod
    def _with_variants(found: Evaluation) -> Evaluation:
        """Move operating points from the baselines to the variants."""
        names = [name for name in found.baselines if name.startswith(VARIANT)]
        found.variants |= {name.removeprefix(VARIANT): found.baselines.pop(name) for name in names}
        return found


def add_spent(evaluation: Evaluation, models: Mapping[str, TapModel]) -> None:
    """Add to the figures of every model what it counted of its own work, see :meth:`TapModel.spent`."""
    sides = {TEACHER: evaluation.teacher, STUDENT: evaluation.student, **evaluation.baselines}
    for name, model in models.items():
        for figure, value in model.spent().items():
            if name in sides and figure not in sides[name]:
                sides[name][figure] = float(value)
                evaluation.units.setdefault(figure, "share")
                evaluation.directions.setdefault(figure, False)
