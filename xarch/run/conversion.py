"""A conversion from plan to report: straight through, a later gate never runs after a failed one."""

from __future__ import annotations

import contextlib
import functools
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

from xarch._version import __version__
from xarch.contracts.batch import Batch
from xarch.contracts.data import BatchStream
from xarch.contracts.export import Profile
from xarch.contracts.metric import Evaluation, Metric
from xarch.contracts.model import Student, Teacher
from xarch.engine.checkpoint import combined_hash, tensor_hashes
from xarch.engine.curve import QualityCurve
from xarch.engine.distributed import Ranks
from xarch.engine.events import Many, Reporter
from xarch.engine.metrics import MetricsLog
from xarch.engine.signals import StopRequest
from xarch.engine.stopwatch import Spent, Stopwatch
from xarch.errors import Interrupted, ParityError, PlanError, QualityError, XarchError
from xarch.files.atomic import read_json, write_json, write_text
from xarch.files.run_dir import RunDir
from xarch.hardware import autocast, choose_device
from xarch.planning.plan import Plan
from xarch.planning.resolve import resolve_data, resolve_target, resolve_teacher
from xarch.registry.registry import Registry
from xarch.run.stages import StageRunner
from xarch.run.student_io import load_student, save_student


class _Log(Reporter):
    """Writes what matters to log.txt."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    def phase(self, name: str, detail: str = "") -> None:
        self.run.say(f"{name} {detail}".strip())

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        self.run.say(f"stage {index}/{total} {name} ({kind}{f', {steps} steps' if steps else ''})")

    def stage_finished(self, name: str, outcome: Any) -> None:
        self.run.say(f"stage {name} done: {outcome.metrics}")

    def message(self, text: str) -> None:
        self.run.say(text)


class Conversion:
    """Executes a plan in a run folder.

    Args:
        plan: exactly this is executed.
        run: its folder; finished parts in it are not done again.
        registry: the loaded plugins.
        reporter: whoever watches.
    """

    student: Student
    teacher: Teacher

    def __init__(self, plan: Plan, run: RunDir, registry: Registry, reporter: Reporter | None = None) -> None:
        self.plan, self.run, self.registry = plan, run, registry
        self.config = plan.config
        self.ranks = Ranks(cpu=plan.device == "cpu")
        watchers = [_Log(run), reporter or Reporter()] if self.ranks.main else []
        self.reporter: Reporter = Many(*watchers)
        self.device = choose_device(plan.device, self.ranks.local_rank)
        self.metrics = MetricsLog(run if self.ranks.main else None, tensorboard=self.config.runtime.tensorboard)
        self.curve = QualityCurve(self.config.evaluate.curve, run if self.ranks.main else None, self._on_the_way)
        self.initialising = Spent()
        self.stop = StopRequest()
        self.data_counters: dict[str, int] = {}
        self.evaluations: dict[str, dict[str, float]] = {}

    def say(self, text: str) -> None:
        """One line for a person and the log."""
        self.reporter.message(text)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Precision of forward passes."""
        return autocast(self.config.runtime, self.device)

    @property
    def resume_command(self) -> str:
        """What continues this run."""
        return f"xarch convert --resume --out {shlex.quote(str(self.run.path))}"

    def go(self) -> dict[str, Any]:
        """Run to the end; returns the content of status.json.

        Raises:
            XarchError: as the contract's exit codes say; status.json and the report are written first.
        """
        torch.set_num_threads(self.plan.threads)
        self._write_head()
        started = time.monotonic()
        try:
            with self.stop:
                self._status("running")
                self._load()
                stages = StageRunner(self)
                stages.run_all()
                self._save_student(stages.decisions)
                self._evaluate()
                self._gates()
                self._export()
        except Interrupted as e:
            self._end("interrupted", e.what)
            raise Interrupted(e.what, self.resume_command) from e
        except KeyboardInterrupt:
            self._end("interrupted", "stopped at once by a second interrupt")
            raise
        except XarchError as e:
            self._end("failed", f"{e.kind}: {e.what}")
            raise
        except BaseException as e:
            self._end("failed", f"{type(e).__name__}: {e}")
            raise
        finally:
            self.metrics.close()
        status = self._end("done", "", seconds=round(time.monotonic() - started, 1))
        # Only after success: on the way out of an error another process may never reach a barrier.
        self.ranks.barrier()
        self.ranks.close()
        return status

    def evaluate_again(self) -> None:
        """Evaluate the saved student again and rebuild the report."""
        self._reload()
        self.run.eval_json.unlink(missing_ok=True)
        self._evaluate()
        self._report()
        self._gates()

    def export_again(self, target: str) -> None:
        """Export the saved student to ``target`` again and rebuild the report."""
        self._reload()
        try:
            self._export_one(target)
        finally:
            self._report()

    def _reload(self) -> None:
        """Teacher and saved student, without the stages."""
        torch.set_num_threads(self.plan.threads)
        self._load_teacher()
        self.student, _, config = load_student(self.run.student, self.registry, self.device)
        self.target = resolve_target(self.registry, f"{config['plugin']}:{config['target']}", config["options"])

    def _write_head(self) -> None:
        if not self.ranks.main or self.run.plan.exists():
            return
        write_text(
            self.run.config, yaml.safe_dump({**self.config.model_dump(mode="json"), "recipe": None}, sort_keys=False)
        )
        write_json(self.run.plan, self.plan.model_dump(mode="json"))
        write_json(self.run.run_json, environment(self.plan, self.ranks.world))

    def _status(self, state: str, reason: str = "", **more: Any) -> dict[str, Any]:
        resume = self.resume_command if state in ("running", "interrupted", "failed") else ""
        if self.ranks.main:
            self.run.set_status(state, reason=reason, resume=resume, **more)
        return {"state": state, "reason": reason, "resume": resume, **more}

    def _end(self, state: str, reason: str, **more: Any) -> dict[str, Any]:
        status = self._status(state, reason, **more)
        if self.ranks.main:
            self.reporter.phase("report")
            self._report()
            self.reporter.finished(status)
        return status

    def _report(self) -> None:
        try:
            from xarch.report.build import build_report

            build_report(self.run)
        except Exception as e:
            # A run that ended must keep its own verdict; the report can be built again from the same files.
            self.say(f"the report could not be written ({type(e).__name__}: {e}); try `xarch report {self.run.path}`")

    def _load_teacher(self) -> None:
        plan = self.plan
        self.reporter.phase("load", plan.teacher.resolved)
        source = resolve_teacher(
            self.registry, plan.teacher.resolved, self.config.teacher_options, self.say, tiny=self.config.tiny
        )
        with self.registry.guard(self.registry.get("source", source.name), "load"):
            self.teacher = source.adapter.load(source.ref, source.options, device=self.device, dtype=torch.float32)
        self.data = resolve_data(self.registry, self.config.data.ref, self.config.data.options)

    def _load(self) -> None:
        plan = self.plan
        self._load_teacher()
        self.target = resolve_target(
            self.registry, plan.student.target, self.config.student.options, tiny=self.config.tiny
        )
        adapter, spec = self.target.adapter, self.registry.get("target", self.target.name)
        torch.manual_seed(self.config.seed)
        watch = Stopwatch()
        with self.registry.guard(spec, "initialise"):
            self.student = adapter.build(self.teacher.facts, self.target.options, {}, device=torch.device("cpu"))
            self.student.module.to(self.device)
            coverage = adapter.initialise(self.student, self.teacher)
        self.initialising = watch.spent
        for planned, done, word in (
            (plan.student.copied, coverage.copied, "copied"),
            (plan.student.mapped, coverage.mapped, "mapped"),
        ):
            lost = sorted(set(planned) - set(done))
            if lost:
                raise PlanError(f"{len(lost)} tensors were to be {word} from the teacher and were not: {lost[:5]}")
        self.student.module.eval().requires_grad_(False)

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
            self._heed("while it evaluated")
            done += 1
            self.reporter.progress(done, -(-samples // self.config.evaluate.batch))

        return self._figures(students, samples, progress)

    def _on_the_way(self, student: Student, samples: int) -> Evaluation | None:
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

    def baseline(self, folder: Path) -> None:
        """Figures of the student before any gradient step, kept in the stage's folder."""
        file = folder / "evaluation.json"
        if not self.config.evaluate.baseline or self.config.tiny or file.exists() or not self.ranks.main:
            return
        self.reporter.phase("evaluate", "the student before any gradient step")
        found = self.measure({"student": self.student})
        if found is not None:
            write_json(file, found.student)

    def _save_student(self, decisions: dict[str, Any]) -> None:
        if self.ranks.main:
            self.reporter.phase("save", str(self.run.student))
            save_student(
                self.run.student,
                self.student,
                target=self.target.name,
                plugin=self.target.plugin,
                options=self.target.options.model_dump(mode="json"),
                decisions=decisions,
                teacher=self.teacher,
                teacher_facts={
                    "ref": self.plan.teacher.ref,
                    "title": self.plan.teacher.title,
                    "fingerprint": self.teacher.fingerprint,
                },
            )
        self.ranks.barrier()
        saved = combined_hash(tensor_hashes(self.student.module.state_dict()))
        self.student, _, _ = load_student(self.run.student, self.registry, self.device)
        again = combined_hash(tensor_hashes(self.student.module.state_dict()))
        if saved != again:
            raise PlanError(f"the saved student does not load as it was: weights {again[:12]}, expected {saved[:12]}")

    def _evaluate(self) -> None:
        if not self.ranks.main or self.run.eval_json.exists():
            return
        self.reporter.phase("evaluate", f"{self.plan.metric or 'nothing registered'}")
        found = self.measure({"student": self.student})
        if found is None:
            return
        for file in sorted(self.run.stages_dir.glob("*/evaluation.json")):
            found.baselines["before training"] = read_json(file)
        write_json(self.run.eval_json, vars(found))

    def _heed(self, when: str) -> None:
        """Stop here if somebody asked to. Among several processes only steps are: the others would wait for this one.

        Raises:
            Interrupted: a signal came.
        """
        if self.stop.received is not None and self.ranks.world == 1:
            raise Interrupted(f"stopped by {self.stop.received} {when}")

    def _gates(self) -> None:
        from xarch.run.gates import check

        if not self.ranks.main or not self.config.gates or self.config.tiny or not self.run.eval_json.exists():
            return
        results = check(read_json(self.run.eval_json)["gated"], self.config.gates)
        missed = [r for r in results if not r.passed]
        if missed:
            text = "; ".join(f"{r.name} is {r.value:.4g}, wanted {r.limit}" for r in missed)
            raise QualityError(
                f"the student misses {'a gate' if len(missed) == 1 else 'gates'}: {text}",
                f"raise the budget: `xarch convert … --set budget={self.config.budget * 2}`; {self.run.report_html}",
            )

    def _export(self) -> None:
        if not self.ranks.main:
            return
        for name in self.config.export.targets:
            self._heed(f"before the export {name}")
            parity = self.run.export_dir / name / "parity.json"
            if not (parity.exists() and read_json(parity)["passed"]):
                self._export_one(name)
            if self.config.export.bench:
                from xarch.bench.latency import bench_export

                self.reporter.phase("bench", name)
                self.run.bench_dir.mkdir(exist_ok=True)
                bench_export(
                    self.run.export_dir / name,
                    self.run.bench_dir / f"{name}.json",
                    teacher=self.run.teacher_bench(name),
                    threads=self.plan.threads,
                    say=self.say,
                )

    def _export_one(self, name: str) -> None:
        from xarch.export.run import export_target

        self.reporter.phase("export", name)
        profile = self.registry.create("export", name)
        adapter = self.target.adapter
        graphs = adapter.export_graphs(self.student, profile, self.config.export.options)
        replaced = self.registry.call("xarch_export", student=self.student, profile=profile, graphs=graphs)
        samples = self.config.export.parity_samples
        batches = list(self.heldout(samples))
        calibration = list(self.heldout(2 * samples))[len(batches) :] if profile.dtype == "int8" else []
        export_target(
            self.student,
            adapter,
            profile,
            graphs=replaced or graphs,
            options=self.config.export.options,
            batches=batches,
            calibration=calibration,
            out=self.run.export_dir / name,
            metadata={"xarch.teacher": self.plan.teacher.ref, "xarch.target": self.plan.student.target},
            say=self.say,
        )
        if self.config.export.bench:
            self._export_teacher(profile)

    def _export_teacher(self, profile: Profile) -> None:
        """The teacher's own graphs, for the bench to measure beside the student's; having none is no error."""
        from xarch.export.run import export_teacher

        folder = self.run.teacher_bench(profile.name)
        if folder.exists():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            graphs = self.target.adapter.teacher_graphs(self.teacher, profile, self.config.export.options)
            if graphs:
                self.reporter.phase("export", f"{profile.name}, teacher")
                export_teacher(graphs, profile, folder, self.say)
        except (PlanError, ParityError) as e:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "absent.json", {"reason": e.what})


def environment(plan: Plan, world: int) -> dict[str, Any]:
    """Versions, machine and seeds for run.json."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "transformers", "safetensors", "accelerate", "onnx", "onnxruntime", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    git = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    return {
        "xarch": __version__,
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.processor() or platform.machine(),
        "git": git,
        "device": plan.device,
        "threads": plan.threads,
        "processes": world,
        "plugins": plan.plugins,
        "seed": plan.config.seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
