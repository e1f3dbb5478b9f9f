"""The Python interface: plan, convert, evaluate, export, bench, report, load, load_student, load_teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from xarch.config.load import LoadedConfig, load_config
from xarch.config.schema import RunConfig
from xarch.errors import PluginError, UsageError
from xarch.failures import translated
from xarch.files.run_dir import RunDir
from xarch.printable import say
from xarch.registry.loader import get_registry
from xarch.run.inspection import read_plan

if TYPE_CHECKING:
    from torch import nn

    from xarch.contracts.model import Student, Teacher
    from xarch.engine.events import Reporter
    from xarch.planning.plan import Plan

Configuration = LoadedConfig | RunConfig | Mapping[str, Any] | str | None


@dataclass(frozen=True)
class Run:
    """A finished conversion: its folder and the content of status.json."""

    path: Path
    status: dict[str, Any]


def _resolved(
    config: Configuration, sets: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> LoadedConfig:
    if isinstance(config, RunConfig):
        return LoadedConfig(config, {}, "run")
    return config if isinstance(config, LoadedConfig) else load_config(config, sets=sets, overrides=overrides)


@translated()
def plan(
    config: Configuration = None,
    *,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    command: str = "",
) -> Plan:
    """Plan a conversion without loading weights.

    Args:
        config: a YAML file, a packaged recipe or method, its content as plain data, a resolved configuration, or None
            with ``overrides``.
        sets: ``a.b=c`` items.
        overrides: dotted key -> value.
        command: what the user typed, for the report.

    Raises:
        UsageError, PlanError, PluginError: see ``xarch.errors``.
    """
    from xarch.planning.build import build_plan
    from xarch.planning.describe import Describer
    from xarch.planning.plan import Plan
    from xarch.planning.settle import settled

    registry = get_registry()
    describer = Describer(registry, say)
    resolved = _resolved(config, sets, overrides)
    with registry.attributed("while planning"):
        resolved = settled(resolved, describer)
        made = build_plan(
            resolved.config,
            registry,
            name=resolved.name,
            provenance=resolved.provenance,
            command=command or f"xarch convert {resolved.name}",
            say=say,
            describer=describer,
        )
    changing = registry.implementers("xarch_modify_plan")
    if not changing:
        return made
    registry.call("xarch_modify_plan", plan=made)
    try:
        # Like a plan from a file: whole, and its stages follow the settings again.
        return Plan.model_validate(made.model_dump())
    except ValidationError as e:
        reasons = "; ".join(error["msg"] for error in e.errors())
        raise PluginError(f"after xarch_modify_plan of {', '.join(changing)} the plan is wrong: {reasons}") from e


@translated()
def convert(
    config: Configuration | Plan = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Run a conversion, or resume an interrupted one. A finished run gets what it lacks: a report, an export, ...

    Args:
        config: as for :func:`plan`, or an existing plan; not used with ``resume``.
        out: the run folder; by default a new one under ``runs/``.
        resume: continue the run in ``out``.
        force: resume although kernels, versions or data differ, so that the student will not be the same bit for bit.
        reporter: receives the run's events.

    Raises:
        XarchError: with the exit code of the failure; the run folder says how to resume.
    """
    from xarch.planning.plan import Plan
    from xarch.run.conversion import Conversion
    from xarch.run.head import begin_run

    registry = get_registry()
    if resume:
        if out is None:
            raise UsageError("--resume needs --out RUN", "pass the run folder to resume")
        run = RunDir.open(out)
        made = read_plan(run)
    else:
        made = config if isinstance(config, Plan) else plan(config, sets=sets, overrides=overrides)
        run = begin_run(made, out)
    if reporter is not None:
        reporter.plan_ready(made)
    status = Conversion(made, run, registry, reporter, force=force).run()
    return Run(run.path, status)


def study(
    study: Path | str | Mapping[str, Any],
    *,
    out: Path | str | None = None,
    jobs: int | None = None,
    retry: bool = False,
    only_arms: Sequence[str] = (),
    only_seeds: Sequence[int] = (),
) -> dict[str, Any]:
    """Run the conversions of a study (arms × seeds), or the missing ones; return the content of study.json.

    Args:
        study: a YAML file, or its content as plain data.
        out: its folder; by default a new one under ``studies/``.
        jobs: number of parallel runs; overrides the study's.
        retry: also run failed runs again.
        only_arms, only_seeds: run these arms and seeds only, by default all. The table shows all that are done.

    Raises:
        UsageError: the study or one of its configurations is wrong; nothing was run.
        XarchError: runs failed, with the exit code of the first one; the others are done.
    """
    from xarch.run.study.conduct import conduct

    return conduct(
        study,
        out,
        jobs=jobs,
        retry=retry,
        only_arms=only_arms,
        only_seeds=only_seeds,
        watch=lambda event, progress: say(event) if event else None,
    )


def load(path: Path | str, device: str = "cpu") -> nn.Module:
    """Load a student's module from a run folder or a student folder, in eval mode.

    Raises:
        UsageError: there is no student, or its files are inconsistent.
    """
    return load_student(path, device).module


@translated()
def load_student(path: Path | str, device: str = "cpu") -> Student:
    """Load a student from a run folder or a student folder: frozen, in eval mode, with its taps.

    Raises:
        UsageError: there is no student, or its files are inconsistent.
    """
    from xarch.hardware import choose_device
    from xarch.run import student_io

    registry = get_registry()
    with registry.attributed(f"load {path}"):
        student, _, _ = student_io.load_student(Path(path), registry, choose_device(device))
    return student


@translated()
def load_teacher(ref: str, options: Mapping[str, Any] | None = None, device: str = "cpu") -> Teacher:
    """Load a teacher by its reference (``hf:FOLDER``, ``run:DIR``, ``zoo:NAME``): frozen, in eval mode, float32.

    Args:
        options: of its source adapter.

    Raises:
        UsageError: the reference or an option is wrong.
        PluginError: the adapter failed.
    """
    import torch

    from xarch.hardware import choose_device
    from xarch.planning.resolve import resolve_teacher

    registry = get_registry()
    source = resolve_teacher(registry, ref, options or {}, say)
    with registry.guard(registry.get("source", source.name), f"load {ref}"):
        teacher: Teacher = source.adapter.load(
            source.ref, source.options, device=choose_device(device), dtype=torch.float32
        )
    return teacher


@translated()
def generate(
    path: Path | str,
    prompt: str = "",
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    *,
    show: Callable[[str], None] = lambda piece: None,
) -> Any:
    """Return a sample output of the student in a run, as defined by its family: text, or the bytes of a PNG image.

    Args:
        show: called with the pieces of a text as they are made, if its family makes it piece by piece: the prompt, then
            one for each unit (a token).

    Raises:
        UsageError: there is no student, or the prompt or an option is invalid.
        PlanError: its family does not support it.
    """
    from xarch.config.validation import validated
    from xarch.planning.describe import family_of
    from xarch.run.student_io import read_student_config, student_folder

    registry = get_registry()
    folder = student_folder(Path(path))
    name = read_student_config(folder).family
    family = family_of(registry, name)
    chosen = validated(family.GenerateOptions, options or {}, "generate")
    student = load_student(path, device)
    with registry.guard(registry.get("family", name), "generate"):
        made = family.generate(student, family.load_processor(folder), prompt, chosen)
        if not isinstance(made, Iterator):
            return made
        pieces = []
        for piece in made:
            pieces.append(piece)
            show(piece)
        return "".join(pieces)


def _reopen(run_path: Path | str, reporter: Reporter | None, sets: Sequence[str], keys: Sequence[str]) -> Any:
    from xarch.config.overrides import with_sets
    from xarch.run.conversion import Conversion

    run = RunDir.open(run_path)
    made = read_plan(run)
    made = made.model_copy(update={"config": with_sets(made.config, sets, keys)})
    conversion = Conversion(made, run, get_registry(), reporter)
    return run, conversion


@translated()
def evaluate(run_path: Path | str, reporter: Reporter | None = None, *, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate the student of a run again and rewrite eval.json and the report.

    Args:
        sets: ``evaluate.a=b`` items, for this evaluation.

    Raises:
        UsageError: a setting is unknown.
        QualityError: the student misses a gate.
    """
    run, conversion = _reopen(run_path, reporter, sets, ("evaluate",))
    conversion.evaluate_again()
    return dict(run.read_evaluation()) if run.eval_json.exists() else {}


@translated()
def export(
    run_path: Path | str, profile: str = "cpu", reporter: Reporter | None = None, *, sets: Sequence[str] = ()
) -> dict[str, Any]:
    """Export the student of a run for one profile, with the parity gate.

    Args:
        sets: ``export.a=b`` and ``evaluate.a=b`` items, for this export.

    Raises:
        UsageError: an option of the export is unknown.
        ParityError: a graph does not reproduce the student.
    """
    run, conversion = _reopen(run_path, reporter, sets, ("export", "evaluate"))
    conversion.export_again(profile)
    from xarch.export.stored import read_parity

    return read_parity(run.export_dir / profile)


@translated()
def bench(
    path: Path | str, reporter: Reporter | None = None, *, threads: int | None = None, sets: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure the latency of a run's exports, or of any ONNX file.

    Args:
        threads: of the runtime; by default the cores that other work leaves free.
        sets: ``runtime.threads=N``, which ``threads`` overrides.

    Raises:
        UsageError: a setting is unknown, there is no export, or a file is damaged.
    """
    from xarch.bench.cases import cases_of
    from xarch.bench.latency import bench_export, bench_model
    from xarch.config.overrides import with_sets
    from xarch.config.schema import RunConfig
    from xarch.threads import choose_threads

    threads = threads or with_sets(RunConfig(), sets, ("runtime",)).runtime.threads
    tell = reporter.message if reporter is not None else say
    chosen = choose_threads(threads)
    tell(f"bench: {chosen}")
    if Path(path).suffix == ".onnx":
        return dict(bench_model(Path(path), threads=chosen.count))
    run = RunDir.open(path)
    made = read_plan(run)
    cases = cases_of(get_registry(), made.student.family, f"{made.student.plugin}:{made.student.target}")
    theirs = None if made.teacher is None else cases_of(get_registry(), made.teacher.family)
    found = {}
    with run.held():
        run.bench_dir.mkdir(exist_ok=True)
        for folder in sorted(p.parent for p in run.export_dir.glob("*/parity.json")):
            figures = bench_export(
                folder,
                threads=chosen.count,
                say=tell,
                cases=cases,
                teacher=run.teacher_bench(folder.name),
                teacher_cases=theirs,
            )
            run.write_json(run.bench_dir / f"{folder.name}.json", figures)
            found[folder.name] = figures
    if not found:
        raise UsageError(f"{run.path} has no export", f"xarch export {run.path} --profile cpu")
    return found


@translated()
def report(run_path: Path | str, *, sets: Sequence[str] = ()) -> Path:
    """Rebuild report.html, report.md and the model card of a run; return the page.

    Args:
        sets: ``report.a=b`` items, for these pages.

    Raises:
        UsageError: a file that it is made from is damaged, or a setting is unknown.
    """
    from xarch.config.overrides import with_sets
    from xarch.report.build import build_report

    run = RunDir.open(run_path)
    run.refuse_damage(run.faults(checkpoints=False))
    wording = with_sets(read_plan(run).config, sets, ("report",)).report if sets else None
    with run.held():
        build_report(run, wording=None if wording is None else wording.model_dump())
    return run.report_html
