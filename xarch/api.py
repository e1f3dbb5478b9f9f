"""The Python interface: plan, convert, evaluate, export, bench, report, inspect, load."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xarch.config.load import LoadedConfig, load_config
from xarch.config.schema import RunConfig
from xarch.errors import UsageError
from xarch.files.atomic import read_json
from xarch.files.run_dir import RunDir
from xarch.registry.loader import get_registry

if TYPE_CHECKING:
    from torch import nn

    from xarch.engine.events import Reporter
    from xarch.planning.plan import Plan

Configuration = LoadedConfig | RunConfig | str | None


@dataclass(frozen=True)
class Run:
    """A finished conversion: its folder and the content of status.json."""

    path: Path
    status: dict[str, Any]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _resolved(
    config: Configuration, sets: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> LoadedConfig:
    if isinstance(config, RunConfig):
        return LoadedConfig(config, {}, "run")
    return config if isinstance(config, LoadedConfig) else load_config(config, sets=sets, overrides=overrides)


def plan(
    config: Configuration = None,
    *,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    command: str = "",
) -> Plan:
    """Everything that will happen, without loading a weight.

    Args:
        config: a YAML file, a packaged recipe, a resolved configuration, or None with ``overrides``.
        sets: ``a.b=c`` items.
        overrides: dotted key -> value.
        command: what the user typed, for the report.

    Raises:
        UsageError, PlanError, PluginError: see ``xarch.errors``.
    """
    from xarch.planning.build import build_plan
    from xarch.planning.resolve import resolve_target, resolve_teacher

    registry = get_registry()
    resolved = _resolved(config, sets, overrides)
    if resolved.needs_recipe:
        chosen = resolved.config
        if not chosen.student.target or not chosen.teacher:
            raise UsageError(
                "nothing to convert: give a configuration, or --teacher SOURCE:REF and --to TARGET",
                "`xarch list recipes` and `xarch list pairs` show what there is",
            )
        target = resolve_target(registry, chosen.student.target, chosen.student.options, tiny=chosen.tiny)
        source = resolve_teacher(registry, chosen.teacher, chosen.teacher_options, _say, tiny=chosen.tiny)
        info = source.adapter.describe(source.ref, source.options)
        resolved = resolved.with_recipe(target.adapter.recipe(info.facts, target.options))
    made = build_plan(
        resolved.config,
        registry,
        name=resolved.name,
        provenance=resolved.provenance,
        command=command or f"xarch convert {resolved.name}",
        say=_say,
    )
    registry.call("xarch_modify_plan", plan=made)
    return made


def convert(
    config: Configuration | Plan = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Run a conversion, or go on with an interrupted one.

    Args:
        config: as for :func:`plan`, or a plan that was already made; not used with ``resume``.
        out: the run folder; by default a new one under ``runs/``.
        resume: continue the run in ``out``.
        reporter: whoever watches the run.

    Raises:
        XarchError: with the exit code of what stopped it; the run folder tells how to go on.
    """
    from xarch.engine.distributed import open_run
    from xarch.planning.plan import Plan
    from xarch.run.conversion import Conversion

    registry = get_registry()
    if resume:
        if out is None:
            raise UsageError("--resume needs --out RUN", "name the run folder to continue")
        run = RunDir.open(out)
        made = read_plan(run)
        if run.state() == "done":
            return Run(run.path, read_json(run.status))
    else:
        made = config if isinstance(config, Plan) else plan(config, sets=sets, overrides=overrides)
        run = open_run(out, made.name)
    if reporter is not None:
        reporter.plan_ready(made)
    status = Conversion(made, run, registry, reporter).run()
    return Run(run.path, status)


def read_plan(run: RunDir) -> Plan:
    """The plan of a run.

    Raises:
        UsageError: plan.json was made by another version or is damaged.
    """
    from xarch.config.validation import validated
    from xarch.planning.plan import Plan

    return validated(Plan, read_json(run.plan), f"{run.plan} cannot be used: ", "make the run again")


def load(path: Path | str, device: str = "cpu") -> nn.Module:
    """A student from a run folder or a student folder, in eval mode.

    Raises:
        UsageError: there is no student, or its files do not fit together.
    """
    from xarch.hardware import choose_device
    from xarch.run.student_io import load_student

    student, _, _ = load_student(Path(path), get_registry(), choose_device(device))
    return student.module


def _reopen(run_path: Path | str, reporter: Reporter | None) -> Any:
    from xarch.run.conversion import Conversion

    run = RunDir.open(run_path)
    conversion = Conversion(read_plan(run), run, get_registry(), reporter)
    return run, conversion


def evaluate(run_path: Path | str, reporter: Reporter | None = None) -> dict[str, Any]:
    """Evaluate the student of a run again and rewrite eval.json and the report."""
    run, conversion = _reopen(run_path, reporter)
    conversion.evaluate_again()
    return dict(read_json(run.eval_json))


def export(run_path: Path | str, profile: str = "cpu", reporter: Reporter | None = None) -> dict[str, Any]:
    """Export the student of a run for one profile, with the parity gate.

    Raises:
        ParityError: a graph does not reproduce the student.
    """
    run, conversion = _reopen(run_path, reporter)
    conversion.export_again(profile)
    return dict(read_json(run.export_dir / profile / "parity.json"))


def bench(path: Path | str, reporter: Reporter | None = None, *, threads: int | None = None) -> dict[str, Any]:
    """Latency of a run's exports, or of any ONNX file."""
    from xarch.bench.cases import cases_of
    from xarch.bench.latency import bench_export, bench_model
    from xarch.hardware import choose_threads

    say = reporter.message if reporter is not None else _say
    if Path(path).suffix == ".onnx":
        return dict(bench_model(Path(path), threads=choose_threads(threads)))
    run = RunDir.open(path)
    made = read_plan(run)
    cases = cases_of(get_registry(), made.student.family, f"{made.student.plugin}:{made.student.target}")
    theirs = None if made.teacher is None else cases_of(get_registry(), made.teacher.family)
    found = {}
    run.bench_dir.mkdir(exist_ok=True)
    for folder in sorted(p.parent for p in run.export_dir.glob("*/parity.json")):
        out = run.bench_dir / f"{folder.name}.json"
        teacher = run.teacher_bench(folder.name)
        found[folder.name] = bench_export(
            folder,
            out,
            threads=choose_threads(threads),
            say=say,
            cases=cases,
            teacher=teacher,
            teacher_cases=theirs,
        )
    if not found:
        raise UsageError(f"{run.path} has no export", f"xarch export {run.path} --profile cpu")
    return found


def report(run_path: Path | str) -> Path:
    """Build report.html and report.md of a run again; returns the page."""
    from xarch.report.build import build_report

    run = RunDir.open(run_path)
    build_report(run)
    return run.report_html


def inspect(ref: str) -> dict[str, Any]:
    """Facts about a teacher reference, a run, a student folder, an ONNX file or a registered name.

    Raises:
        UsageError: it is none of these.
    """
    path = Path(ref)
    if path.suffix == ".onnx":
        from xarch.export.check import inspect_onnx

        return dict(inspect_onnx(path))
    if (path / "plan.json").is_file():
        run = RunDir.open(path)
        made = read_plan(run)
        return {"run": str(path), "state": run.state(), "plan": made.model_dump(mode="json")}
    if (path / "config.json").is_file() and "target" in read_json(path / "config.json"):
        return {"student": str(path), **read_json(path / "config.json")}
    registry = get_registry()
    named = [s for s in registry.specs() if ref in (s.name, s.qualified)]
    if named:
        return {"names": [_inspect_spec(s) for s in named]}
    return _inspect_teacher(ref)


def _inspect_spec(spec: Any) -> dict[str, Any]:
    registry = get_registry()
    facts = {"kind": spec.kind, "name": spec.name, "plugin": spec.plugin, "summary": spec.summary}
    if spec.kind == "recipe":
        return {**facts, "yaml": registry.resolve(spec)}
    if spec.kind == "teacher":
        return {**facts, **spec.data}
    found = registry.resolve(spec)
    options = getattr(found, "Options", None)
    return {
        **facts,
        "doc": (getattr(found, "__doc__", "") or "").strip(),
        "options": options.model_json_schema() if options is not None else {},
    }


def _inspect_teacher(ref: str) -> dict[str, Any]:
    from xarch.planning.build import family_taps
    from xarch.planning.resolve import resolve_teacher

    registry = get_registry()
    source = resolve_teacher(registry, ref, {}, _say)
    info = source.adapter.describe(source.ref, source.options)
    taps = family_taps(registry, info)
    return {
        "teacher": ref,
        "title": info.title,
        "family": info.family,
        "parameters": info.parameters,
        "weight_bytes": info.weight_bytes,
        "facts": info.facts.to_json(),
        "details": info.details,
        "taps": [{"name": t.name, "kind": t.kind, "layout": t.layout, "shape": t.shape} for t in taps.values()],
    }
