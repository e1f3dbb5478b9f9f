"""Deliverables of a run: the saved student, its exports, and their bench."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from xarch.contracts.batch import Batch
from xarch.contracts.data import Split
from xarch.contracts.export import ExportGraph, Profile
from xarch.contracts.model import Student, TapModel, Teacher
from xarch.engine.distributed import Distributed
from xarch.engine.events import Reporter
from xarch.errors import ParityError, PlanError
from xarch.export.stored import passed, read_profile
from xarch.files.atomic import new_folder, write_json
from xarch.files.digest import combined_hash, tensor_hashes
from xarch.files.manifest import seal, verify, whole
from xarch.files.run_dir import RunDir
from xarch.planning.plan import Plan
from xarch.planning.resolve import Resolved, export_options
from xarch.registry.registry import Registry
from xarch.run.evaluate import Evaluator
from xarch.run.standalone import complete, licence_of
from xarch.run.student_io import load_student, save_student


class Delivery:
    """Saves and exports the student of a run; ``target`` is set after it is resolved.

    Args:
        plan, run, registry, reporter, ranks, device: those of the run.
        evaluator: provides held-out batches and the teacher.
    """

    target: Resolved

    def __init__(
        self,
        plan: Plan,
        run: RunDir,
        registry: Registry,
        reporter: Reporter,
        ranks: Distributed,
        device: torch.device,
        evaluator: Evaluator,
    ) -> None:
        self.plan, self.config, self.run, self.registry = plan, plan.config, run, registry
        self.reporter, self.ranks, self.device, self.evaluator = reporter, ranks, device, evaluator

    def save(self, student: Student, decisions: dict[str, Any]) -> Student:
        """Write the student folder; return the student as loaded from it.

        Raises:
            PlanError: its weights differ after loading.
        """
        teacher = self.evaluator.teacher
        if self.ranks.main:
            self.reporter.phase("save", str(self.run.student))
            self.run.lock.check()
            save_student(
                self.run.student,
                student,
                self.registry,
                target=self.target,
                built_from=self.plan.student.built_from,
                decisions=decisions,
                teacher=teacher,
                teacher_facts=None if teacher is None else _facts(self.plan, teacher),
                processor=self.evaluator.sides.processors["student"],
            )
        self.ranks.barrier()
        saved = combined_hash(tensor_hashes(student.module.state_dict()))
        loaded, _, _ = load_student(self.run.student, self.registry, self.device)
        again = combined_hash(tensor_hashes(loaded.module.state_dict()))
        if saved != again:
            raise PlanError(f"the saved student differs after loading: weights {again[:12]}, expected {saved[:12]}")
        return loaded

    def evaluate_exports(self, student: Student) -> None:
        """Evaluate the files of every export that passed into eval.json, if the configuration asks for it."""
        if not self.config.evaluate.exports or not self.run.export_dir.is_dir():
            return
        for folder in sorted(self.run.export_dir.iterdir()):
            if passed(folder) and whole(folder):
                self._evaluate(student, folder.name)

    def deliver(self, student: Student) -> None:
        """Make every configured export that has not passed yet, and bench each."""
        if not self.ranks.main:
            return
        for name in self.config.export.profiles:
            self.evaluator.raise_if_stopped(f"before the export {name}")
            folder = self.run.export_dir / name
            if not (passed(folder) and whole(folder)):
                self.export(student, name)
            verify(folder)
            if self.config.evaluate.exports:
                self._evaluate(student, name, again=False)
            file = self.run.bench_dir / f"{name}.json"
            if self.config.export.bench and not (file.exists() and self.run.manifest.knows(file)):
                from xarch.bench.cases import cases_of
                from xarch.bench.latency import bench_export

                teacher = self.evaluator.teacher
                self.reporter.phase("bench", name)
                self.run.bench_dir.mkdir(exist_ok=True)
                figures = bench_export(
                    folder,
                    cases=cases_of(self.registry, student.family, self._target),
                    teacher=self.run.teacher_bench(name),
                    teacher_cases=None if teacher is None else cases_of(self.registry, teacher.family),
                    threads=self.plan.threads,
                    say=self.reporter.message,
                )
                self.run.write_json(file, figures)

    def export(self, student: Student, name: str) -> None:
        """Export the student for one profile, including the checker and the parity gate.

        Raises:
            PluginError: code of the target, of a hook or of their cases failed; names the plugin.
            ParityError: a graph does not reproduce the student, or nothing verifies it.
        """
        from xarch.export.run import export_profile

        self.reporter.phase("export", name)
        # Figures of an export that is replaced are those of another one.
        (self.run.bench_dir / f"{name}.json").unlink(missing_ok=True)
        profile = self.registry.create("export", name)
        adapter = self.target.adapter
        options = export_options(adapter, self.config)
        with self._blame("export_graphs"):
            graphs = list(adapter.export_graphs(student, profile, options))
        replaced = self.registry.call("xarch_export", student=student, profile=profile, graphs=graphs)
        samples, licence = self.config.export.parity_samples, licence_of(self.plan)
        self.run.lock.check()
        export_profile(
            student,
            adapter,
            profile,
            graphs=replaced or graphs,
            options=options,
            batches=list(self.evaluator.batches("heldout", samples)),
            calibration=self._calibration(profile, replaced or graphs),
            out=self.run.export_dir / name,
            metadata={
                "xarch.teacher": self.config.teacher,
                "xarch.target": self.plan.student.target,
                **({} if licence is None else {"xarch.licence": licence}),
            },
            say=self._say,
            translate=self._translate,
            blame=self._blame,
            complete=lambda folder, names: complete(
                folder, names, self.run.student, student.family, self.plan, self.registry
            ),
        )
        if self.config.evaluate.exports:
            self._evaluate(student, name)
        if self.config.export.bench:
            self._export_teacher(profile)

    @cached_property
    def _translate(self) -> Callable[[ExportGraph, Profile], Any]:
        """Translates the graphs of all exports, which share what is alike in them."""
        from xarch.export.onnx_export import Translated, to_onnx

        return partial(to_onnx, known=Translated())

    def _calibration(self, profile: Profile, graphs: list[ExportGraph]) -> list[Batch]:
        """Return the data by which weights of few bits are chosen: ranges of inputs need a split of their own; of
        weights alone, only their bits are chosen, for which validation data serve."""
        if profile.dtype not in ("int8", "int4"):
            return []
        split: Split = "validation" if all(graph.weight_only for graph in graphs) else "calibration"
        return list(self.evaluator.batches(split, self.config.export.parity_samples))

    def _say(self, text: str) -> None:
        """Display a line; between two steps of an export is also a place to stop, should a library have dropped the
        exception."""
        self.reporter.message(text)
        self.evaluator.raise_if_stopped("during the export")

    def _evaluate(self, student: Student, name: str, *, again: bool = True) -> None:
        """Evaluate the exported files with the run's metric, then those of every further operating point.

        Args:
            again: False: only what eval.json does not have yet.
        """
        from xarch.export.exported_model import ExportedModel, points_of

        folder, threads = self.run.export_dir / name, self.plan.threads
        verify(folder)
        further = points_of(read_profile(folder)["graphs"])[1:]
        wanted: dict[str, str | None] = {name: None, **{f"{name}.{point}": point for point in further}}
        if not again:
            wanted = {key: point for key, point in wanted.items() if not self.evaluator.knows_export(key)}
        if not wanted:
            return
        with self._blame("exported"):
            own = self.target.adapter.exported(folder, student, threads)
        for key, point in wanted.items():
            model: TapModel | None = own
            if own is not None and point is not None:
                with self._blame("exported_point"):
                    model = self.target.adapter.exported_point(folder, student, threads, point)
                if model is None:
                    # It is the whole export, however many points its graphs have.
                    continue
            if model is None:
                model = ExportedModel(folder, student, threads=threads, point=point)
            self.evaluator.evaluate_export(key, model)

    @property
    def _target(self) -> str:
        """Return PLUGIN:NAME; a saved student's target already has this form."""
        return f"{self.target.plugin}:{self.target.name.rpartition(':')[2]}"

    def _blame(self, during: str) -> AbstractContextManager[object]:
        """Attribute errors in code of the target, and of the objects it returns, to its plugin."""
        return self.registry.guard(self.registry.get("target", self._target), during)

    def _export_teacher(self, profile: Profile) -> None:
        """Export the teacher's graphs, for the bench to compare with the student's; having none is not an error."""
        folder = self.run.teacher_bench(profile.name)
        if folder.exists() or self.evaluator.teacher is None:
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._blame("teacher_graphs"):
                options = export_options(self.target.adapter, self.config)
                graphs = list(self.target.adapter.teacher_graphs(self.evaluator.teacher, profile, options))
            if graphs:
                self.reporter.phase("export", f"{profile.name}, teacher")
                self._write_teacher(graphs, profile, folder)
        except (PlanError, ParityError) as e:
            with new_folder(folder) as part:
                write_json(part / "absent.json", {"reason": e.what})
                seal(part)

    def _write_teacher(self, graphs: list[ExportGraph], profile: Profile, folder: Path) -> None:
        """Export the teacher in the profile's precision, or in float32 where 8 bits do not reproduce it."""
        from xarch.export.run import export_teacher

        teacher, say = self.evaluator.teacher, self.reporter.message
        if profile.dtype == "int8":
            batches = [batch.seen_by("teacher") for batch in self._calibration(profile, graphs)]
            try:
                export_teacher(
                    graphs, profile, folder, say, teacher=teacher, batches=batches, translate=self._translate
                )
                return
            except (PlanError, ParityError) as e:
                say(f"teacher in float32: {e.what}")
        export_teacher(graphs, profile, folder, say, translate=self._translate)


def _facts(plan: Plan, teacher: Teacher) -> dict[str, Any]:
    assert plan.teacher is not None
    licence = licence_of(plan)
    return {
        "ref": plan.teacher.ref,
        "title": plan.teacher.title,
        "fingerprint": teacher.fingerprint,
        **({"licence": licence} if licence else {}),
    }
