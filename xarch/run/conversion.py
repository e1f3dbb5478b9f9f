"""A conversion from plan to report, in sequence: nothing runs after a failed gate."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from xarch.config.schema import Gate
from xarch.contracts.model import Initialisation, Student
from xarch.engine.checkpoint import kept_facts
from xarch.engine.curve import QualityCurve
from xarch.engine.distributed import Distributed
from xarch.engine.events import Reporter, Reporters
from xarch.engine.metrics import MetricsLog
from xarch.engine.signals import StopRequest
from xarch.engine.stopwatch import Spent, Stopwatch
from xarch.engine.trackers import Trackers
from xarch.errors import Interrupted, OutOfMemoryError, PlanError, QualityError, StopSignal, StorageError, XarchError
from xarch.failures import as_error, is_machine_failure
from xarch.files.manifest import whole
from xarch.files.run_dir import RunDir
from xarch.hardware import autocast, choose_device
from xarch.kernels import dispatch, keep_freed_memory
from xarch.planning.describe import family_of
from xarch.planning.feasibility import account_for
from xarch.planning.plan import Plan
from xarch.registry.registry import Registry
from xarch.run.deciding import deciding, refuse_changes
from xarch.run.deliver import Delivery
from xarch.run.evaluate import Evaluator
from xarch.run.gates import before_export, check, gateable, longer
from xarch.run.sides import RunSides, load_sides
from xarch.run.stages import StageRunner
from xarch.run.student_io import load_student
from xarch.threads import Threads


class _Log(Reporter):
    """Reporter that writes the main events to log.txt."""

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


class _Phase(Reporter):
    """Remembers what the run is doing, for the message of a stop."""

    now = "its start"

    def phase(self, name: str, detail: str = "") -> None:
        self.now = name

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        self.now = f"stage {name}"


class Conversion:
    """Executes a plan in a run folder.

    Args:
        plan: the plan to execute.
        run: its folder; finished parts are not repeated.
        registry: the loaded plugins.
        reporter: receives the run's events.
        force: resume although what decides bits has changed.
    """

    student: Student
    sides: RunSides

    def __init__(
        self, plan: Plan, run: RunDir, registry: Registry, reporter: Reporter | None = None, *, force: bool = False
    ) -> None:
        self.plan, self.folder, self.registry, self.force = plan, run, registry, force
        self.config = plan.config
        self.ranks = Distributed(cpu=plan.device == "cpu")
        watchers = [_Log(run), reporter or Reporter()] if self.ranks.main else []
        self.phase = _Phase()
        self.reporter: Reporter = Reporters(self.phase, *watchers)
        self.device = choose_device(plan.device, self.ranks.local_rank)
        self.metrics = MetricsLog(run if self.ranks.main else None, tensorboard=self.config.runtime.tensorboard)
        self.stop = StopRequest()
        shared = (plan, run, registry, self.reporter, self.ranks, self.device)
        self.evaluator = Evaluator(*shared, self._raise_if_stopped)
        self.delivery = Delivery(*shared, self.evaluator)
        self.curve = QualityCurve(
            self.config.evaluate.curve, run if self.ranks.main else None, self.evaluator.measure_quietly
        )
        self.initialising = Spent()

    def say(self, text: str) -> None:
        """Write one line to the display and the log."""
        self.reporter.message(text)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the autocast context of forward passes."""
        return autocast(self.config.runtime.precision, self.device)

    @property
    def resume_command(self) -> str:
        """Return the command that resumes this run."""
        return f"xarch convert --resume --out {shlex.quote(str(self.folder.path))}"

    def run(self) -> dict[str, Any]:
        """Run to the end, or build again what a finished run lacks; return the content of status.json.

        Raises:
            BusyError: another process is writing the run.
            XarchError: with the exit code of the failure; status.json and the report are written first.
        """
        with self.folder.held() if self.ranks.main else contextlib.nullcontext(), self.stop, dispatch.recording():
            # Outside what records errors: damage to a finished run does not make it a failed one.
            known = self.folder.read_status() if self.folder.status.exists() else {}
            finished = known.get("state") == "done"
            if finished and not self.ranks.any(self._lacking()):
                return known
            try:
                return self._run(known if finished else {})
            except BaseException as e:
                error = self._removed() or as_error(e, self.resume_command)
                if isinstance(e, StopSignal):
                    error = Interrupted(f"stopped by {e.name} during {self.phase.now}")
                if isinstance(error, Interrupted):
                    error.hint = error.hint or self.resume_command
                hasty = isinstance(e, StopSignal) or isinstance(error, OutOfMemoryError)
                self._end_by(e if error is None else error, report=not hasty)
                if error is None or error is e:
                    raise
                raise error from e

    def _run(self, known: dict[str, Any]) -> dict[str, Any]:
        """Run, or build again what is missing; ``known`` is the status of a finished run."""
        torch.set_num_threads(self.plan.threads)
        keep_freed_memory()
        self.say(str(Threads(self.plan.threads, self.plan.threads_why)))
        clock = Stopwatch()
        with self.registry.attributed("while it ran"):
            if known and whole(self.folder.student):
                self._reload()
            else:
                self._status("running")
                self._train()
            self.evaluator.evaluate(self.student)
            self._gates(before_export(self.config.gates))
            self.delivery.deliver(self.student)
            self._gates(self.config.gates)
            took: dict[str, Any] = {k: known[k] for k in ("seconds", "cpu_seconds") if k in known}
            status: dict[str, Any] = {"state": "done", "reason": "", "resume": "", **(took or clock.spent.rounded())}
            self._finish(status)
        # Only after success: after an error, another rank may never reach a barrier.
        self.ranks.barrier()
        self.ranks.close()
        return status

    def _removed(self) -> StorageError | None:
        """Return the error of a run whose folder was removed, which explains all others."""
        try:
            self.folder.lock.check()
        except StorageError as e:
            return e
        return None

    def _train(self) -> None:
        """Load all sides, run the stages that are not done, and save the student."""
        if self.ranks.main and self.config.runtime.trackers:
            self.metrics.trackers = Trackers(self.plan, self.folder.tb, self.say)
        self._load()
        if not any(self.folder.stages_dir.glob("*/checkpoints/*")):
            self.evaluator.try_out(self.student)
        decisions = self._stages().run_all()
        self.student = self.delivery.save(self.student, decisions)

    def _lacking(self) -> bool:
        """Return whether a finished run lacks a product.

        Raises:
            UsageError: a file is damaged, or is missing and nothing can build it again.
        """
        if not self.ranks.main:
            return False
        found = self.folder.faults(checkpoints=False)
        self.folder.refuse_damage(found)
        products = [self.folder.student, self.folder.report_html, self.folder.report_md]
        products += [self.folder.eval_json] if self.plan.metric is not None else []
        products += [self.folder.export_dir / name for name in self.config.export.profiles]
        if self.config.export.bench:
            products += [self.folder.bench_dir / f"{name}.json" for name in self.config.export.profiles]
        return bool(found) or not all(p.exists() for p in products)

    def _finish(self, status: dict[str, Any]) -> None:
        """Write the report, then seal the run; that it is done is written last."""
        if self.ranks.main:
            self.reporter.phase("report")
            if self.plan.metric is not None:
                self.metrics.summary(self.folder.read_evaluation().get("student", {}))
            self.metrics.close()
            self._build_report(status)
            self.reporter.finished(status)
            self.folder.seal(status)

    def _stages(self) -> StageRunner:
        return StageRunner(
            plan=self.plan,
            run=self.folder,
            registry=self.registry,
            reporter=self.reporter,
            ranks=self.ranks,
            device=self.device,
            metrics=self.metrics,
            curve=self.curve,
            stop=self.stop,
            student=self.student,
            sides=self.sides,
            evaluator=self.evaluator,
            initialising=self.initialising,
            autocast=self.autocast,
            decided=self.decided,
        )

    def evaluate_again(self) -> None:
        """Evaluate the saved student again and rebuild the report."""
        with self.folder.held():
            with self.registry.attributed("while it evaluated"):
                self._reload()
                self.folder.eval_json.unlink(missing_ok=True)
                self.evaluator.evaluate(self.student)
                self.delivery.evaluate_exports(self.student)
            self._report()
        self._gates(before_export(self.config.gates))

    def export_again(self, profile: str) -> None:
        """Export the saved student for ``profile`` again and rebuild the report."""
        with self.folder.held(), self._reporting(), self.registry.attributed(f"export {profile}"):
            self._reload()
            self.delivery.export(self.student, profile)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Rebuild the report at the end, whatever happens."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self._report()
            raise
        self._report()

    def _reload(self) -> None:
        """Load teachers and the saved student, without the stages."""
        torch.set_num_threads(self.plan.threads)
        self._load_sides()
        self.student, target, _ = load_student(self.folder.student, self.registry, self.device)
        self.delivery.target = target

    def _status(self, state: str, reason: str = "", **more: Any) -> dict[str, Any]:
        resume = self.resume_command if state in ("running", "interrupted", "failed") else ""
        if self.ranks.main:
            self.folder.set_status(state, reason=reason, resume=resume, **more)
        return {"state": state, "reason": reason, "resume": resume, **more}

    def _end(self, state: str, reason: str, **more: Any) -> dict[str, Any]:
        status = self._status(state, reason, **more)
        if self.ranks.main:
            self.reporter.phase("report")
            self._report()
            self.reporter.finished(status)
        return status

    def _end_by(self, error: BaseException, *, report: bool) -> None:
        """Record an error that ended the run. What fails here as well, after a full disk for example, is left out: the
        error is the one to report.

        Args:
            report: also rebuild the report. Who sent a signal waits for the end, perhaps only for seconds; and where
                memory ran out, a library that starts a thread waits for ever for one that could not begin.
        """
        if isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(Exception):
                self._status("interrupted", "stopped immediately by a second signal")
            return
        state = "interrupted" if isinstance(error, Interrupted) else "failed"
        reason = f"{error.kind}: {error.what}" if isinstance(error, XarchError) else f"{type(error).__name__}: {error}"
        reason = error.what if type(error) is Interrupted else reason
        with contextlib.suppress(Exception):
            self.metrics.close()
        with contextlib.suppress(Exception):
            if report:
                self._end(state, reason)
            else:
                self.reporter.finished(self._status(state, reason))

    def _report(self) -> None:
        try:
            self._build_report()
        except Exception as e:
            if is_machine_failure(e):
                raise
            # The cause of a failure must not be hidden by one of its report.
            self.say(
                f"the report could not be written ({type(e).__name__}: {e}); "
                f"rebuild it with `xarch report {self.folder.path}`"
            )

    def _build_report(self, status: Mapping[str, Any] | None = None) -> None:
        from xarch.report.build import build_report

        build_report(self.folder, status)

    def _load_sides(self) -> None:
        """Load teachers, their view, processors and data."""
        plan = self.plan
        self.reporter.phase("load", plan.teacher.resolved if plan.teacher is not None else "no teacher")
        self.sides = self.evaluator.sides = load_sides(plan, self.registry, self.device, self.say)
        self.delivery.target = self.sides.target

    def _load(self) -> None:
        """Load everything the stages need, and build the initial student.

        Raises:
            PlanError: its initialisation differs from the plan, or would drop teacher tensors.
        """
        self._load_sides()
        teacher, adapter = self.sides.teacher, self.sides.target.adapter
        built_from = self.plan.student.built_from
        facts = family_of(self.registry, built_from["family"]).Facts.from_json(built_from["facts"])
        torch.manual_seed(self.config.seed)
        watch = Stopwatch()
        with self.registry.guard(self.registry.get("target", self.sides.target.name), "initialise"):
            self.student = adapter.build(facts, self.sides.target.options, {}, device=torch.device("cpu"))
            adapter.own_weights(self.student, self.sides.target.options)
            self.student.module.to(self.device)
            if teacher is not None:
                done = adapter.initialise(self.student, teacher)
                _as_planned(self.plan, done)
                account_for(done, teacher.weights())
        self.initialising = watch.spent
        self.student.module.eval().requires_grad_(False)
        if self.ranks.main:
            changed = refuse_changes(kept_facts(self.folder.stages_dir), self.decided(), force=self.force)
            for line in changed:
                self.say(f"resumed with --force although {line}")

    def decided(self) -> dict[str, Any]:
        """Return what decides the student's bits, for checkpoints."""
        return deciding(self.folder, self.plan, self.registry, data=self.sides.digest, processes=self.ranks.world)

    def _raise_if_stopped(self, when: str) -> None:
        """Raise if a stop was requested and deferred, or dropped by a library. With several processes only optimiser
        steps check, or the other ranks would hang.

        Raises:
            Interrupted: a signal came.
        """
        if self.stop.received is not None and self.ranks.world == 1:
            raise Interrupted(f"stopped by {self.stop.received} {when}")

    def _gates(self, gates: Mapping[str, Gate]) -> None:
        if not self.ranks.main or not gates or self.config.tiny or not self.folder.eval_json.exists():
            return
        results = check(gateable(self.folder.read_evaluation()), gates)
        missed = [r for r in results if not r.passed]
        if missed:
            text = "; ".join(f"{r.name} is {r.value:.4g}, wanted {r.limit}" for r in missed)
            raise QualityError(
                f"the student misses {'a gate' if len(missed) == 1 else 'gates'}: {text}",
                f"train longer: `xarch convert … --set {longer(self.config)}`; {self.folder.report_html}",
            )


def _as_planned(plan: Plan, done: Initialisation) -> None:
    """Check that everything planned to be copied or mapped from the teacher was.

    Raises:
        PlanError: it was not.
    """
    for planned, made, word in (
        (plan.student.copied, done.copied, "copied"),
        (plan.student.mapped, done.mapped, "mapped"),
    ):
        lost = sorted(set(planned) - set(made))
        if lost:
            raise PlanError(f"{len(lost)} tensors planned to be {word} from the teacher were not: {lost[:5]}")
