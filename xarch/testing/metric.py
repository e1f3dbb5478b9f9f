"""Conformance of metrics: evaluation has no side effects and treats all models equally."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from xarch.config.validation import validated
from xarch.contracts.batch import Batch
from xarch.contracts.metric import Evaluation, EvaluationRequest, Metric
from xarch.contracts.model import TapModel, Teacher
from xarch.errors import UsageError
from xarch.files.digest import weights_digest
from xarch.planning.resolve import providers, resolve_data
from xarch.registry.loader import get_registry
from xarch.testing.models import family_named, load_teacher
from xarch.testing.values import global_draws, registered


class MetricConformance:
    """Subclass it with ``metric = "NAME"`` and ``family``.

    Class attributes:
        metric: its name, or ``plugin:name``.
        family: its tiny teacher is evaluated against itself.
        options: of the metric.
        needs_teacher: False for a metric that can evaluate a student without a teacher (labels).
    """

    metric: ClassVar[str] = ""
    family: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    needs_teacher: ClassVar[bool] = True
    samples: ClassVar[int] = 4

    def make_teacher(self, folder: Path) -> str:
        """Return the reference of a small teacher."""
        return family_named(self.family).tiny_teacher(folder)

    def batches(self, teacher: Teacher, folder: Path) -> list[Batch]:
        """Two held-out batches."""
        registry = get_registry()
        settings = family_named(self.family).tiny_run(folder)
        found = resolve_data(registry, settings["data.ref"], settings.get("data.options", {}))
        request = providers(registry)(settings["data.ref"], settings.get("data.options", {})).request
        sides = dict.fromkeys(("teacher", "student"), teacher.processor())
        opened = found.adapter.open(
            replace(
                request,
                split="heldout",
                samples=2,
                sample=settings.get("data.sample", {}),
                processors=sides,
                teacher=teacher,
                facts=teacher.facts,
            )
        )
        try:
            return [next(opened), next(opened)]
        finally:
            opened.close()

    @pytest.fixture
    def teacher(self, tmp_path: Path) -> Teacher:
        """The small teacher."""
        return load_teacher(self.make_teacher(tmp_path))

    @pytest.fixture
    def heldout(self, teacher: Teacher, tmp_path: Path) -> list[Batch]:
        """Return the evaluation request."""
        return self.batches(teacher, tmp_path)

    def _made(self) -> Metric:
        kind: type[Metric] = registered("metric", self.metric)
        return kind()

    def _evaluate(
        self, metric: Metric, teacher: TapModel | None, students: Mapping[str, TapModel], batches: Iterable[Batch]
    ) -> tuple[Evaluation, int]:
        told: list[int] = []
        kept = list(batches)
        options = validated(type(metric).Options, self.options, f"metric {self.metric}")
        model = next(iter(students.values()))
        request = EvaluationRequest(
            teacher,
            students,
            lambda: iter(kept),
            processor=model.processor() if isinstance(model, Teacher) else None,
            options=options,
            progress=told.append,
        )
        with torch.no_grad():
            return metric.evaluate(request), sum(told)

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(UsageError):
            validated(registered("metric", self.metric).Options, {"no_such_option": 1}, "options")

    def test_a_model_equals_itself(self, teacher: Teacher, heldout: list[Batch]) -> None:
        found, _ = self._evaluate(self._made(), teacher, {"student": teacher, "start": teacher}, heldout)
        assert found.metric in found.student, "the headline metric is not among the student's figures"
        assert found.student.keys() == found.baselines["start"].keys(), "models have different figures"
        for name, value in found.student.items():
            assert math.isfinite(value), f"{name} is {value}"
            assert value == pytest.approx(found.baselines["start"][name]), f"{name} differs for the same model"
            if name in found.teacher:
                assert value == pytest.approx(found.teacher[name]), f"{name} differs for the same model"
        assert found.n > 0
        given = {**found.student, **found.gated}
        unsaid = [name for name in given if not any(fnmatchcase(name, known) for known in self._made().figures)]
        assert not unsaid, f"Metric.figures lacks {', '.join(unsaid)}, so plans would refuse gates on it"
        assert all(math.isfinite(v) for v in found.gated.values())

    def test_measuring_changes_nothing(self, teacher: Teacher, heldout: list[Batch]) -> None:
        teacher.module.train()
        for module in teacher.module.modules():
            # Statistics that every forward pass in train mode changes are not the metric's doing.
            if getattr(module, "track_running_stats", False):
                module.eval()
        before = weights_digest(teacher.module.state_dict()), global_draws()
        modes = [m.training for m in teacher.module.modules()]
        kept = [{k: v.clone() for k, v in b.tensors.items()} for b in heldout]
        self._evaluate(self._made(), teacher, {"student": teacher}, heldout)
        assert weights_digest(teacher.module.state_dict()) == before[0], "it writes to the model"
        assert global_draws() == before[1], "it draws from the global random state"
        assert [m.training for m in teacher.module.modules()] == modes, "it switches train and eval mode"
        assert all(torch.equal(v, b[k]) for b, was in zip(heldout, kept, strict=True) for k, v in was.items())

    def test_it_repeats(self, teacher: Teacher, heldout: list[Batch]) -> None:
        """A run uses one metric object for all of its evaluations."""
        metric = self._made()
        one, told = self._evaluate(metric, teacher, {"student": teacher}, heldout)
        two, _ = self._evaluate(metric, teacher, {"student": teacher}, heldout)
        assert one.student == two.student
        assert one.gated == two.gated
        assert told == sum(b.units for b in heldout), "progress was not called with the units of every batch"

    def test_without_a_teacher(self, teacher: Teacher, heldout: list[Batch]) -> None:
        if self.needs_teacher:
            pytest.skip("it compares with a teacher")
        found, _ = self._evaluate(self._made(), None, {"student": teacher}, heldout)
        assert found.teacher == {}
        assert found.metric in found.student
