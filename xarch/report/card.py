"""The model card of a student: README.md with machine-readable front matter."""

from __future__ import annotations

import re
from typing import Any

import yaml

from xarch.report.files import RunInfo, dig, names_of, natural, rows_of, table_of
from xarch.report.licence import licence_text
from xarch.report.outcome import is_tiny, undone_of
from xarch.report.render_markdown import escape, fenced
from xarch.report.wording import count, figure, number, plural, rate, size, with_unit

ARXIV = re.compile(r"arXiv:\d{4}\.\d{4,5}$")
HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
SAMPLES = 3


def model_card(files: RunInfo) -> str:
    """Return the model card of a run.

    The front matter lists base model, task, licence, tags and results, as the Hugging Face hub reads them. The text
    describes the student, how it was made, its quality, size and speed beside those of teacher and controls, samples,
    limits, how to use it, the licence and what to cite. Exports are named as `xarch push` places them.
    """
    parts = [_front(files), *_what(files), *_figures(files), *_speed(files), *_samples(files), *_limits(files)]
    parts += [*_use(files), *_method(files), *_licence(files), *_citation(files)]
    return "\n".join(parts).rstrip() + "\n"


def _front(files: RunInfo) -> str:
    teacher, task = table_of(files.plan, "teacher"), _task(files)
    licence, base = dig(teacher, "details", "licence"), _base_model(files)
    languages = files.wording("language") or []
    front: dict[str, Any] = {
        "library_name": "xarch",
        **({"pipeline_tag": task} if task else {}),
        **({"base_model": base, "base_model_relation": "finetune"} if base else {}),
        "license": str(licence).lower() if licence else "unknown",
        **({"language": [str(language) for language in languages]} if languages else {}),
        **({"datasets": [str(hub)]} if (hub := dig(files.plan, "data", "facts", "hub_dataset")) else {}),
        "tags": ["xarch", "distillation", str(dig(files.student, "target", default="student")), "onnx"],
    }
    if task and not is_tiny(files):
        front |= _model_index(files, task)
    return "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---\n"


def _model_index(files: RunInfo, task: str) -> dict[str, Any]:
    """Return the evaluated figures in the form that the hub shows beside a model."""
    found = table_of(files.eval, "student")
    figures = [{"type": str(n), "name": with_unit(n, files.unit_of(n)), "value": v} for n, v in found.items()]
    if not figures:
        return {}
    data = str(dig(files.plan, "data", "title") or dig(files.plan, "data", "ref", default="held-out data"))
    reference = str(dig(files.plan, "data", "ref", default="unknown"))
    entry = {"task": {"type": task}, "dataset": {"name": f"{data}, held-out part", "type": reference}}
    return {"model-index": [{"name": files.title, "results": [{**entry, "metrics": figures}]}]}


def _task(files: RunInfo) -> str:
    from xarch.registry.loader import get_registry

    registry = get_registry()
    known = any(spec.name == files.family for spec in registry.specs("family"))
    return str(registry.create("family", files.family).hub_task) if known else ""


def _base_model(files: RunInfo) -> str | None:
    """Return the teacher's name on the hub, None if nobody says it: the hub rejects any other."""
    from xarch.registry.loader import get_registry

    teacher = table_of(files.plan, "teacher")
    scheme, _, name = str(teacher.get("ref", "")).partition(":")
    found = files.wording("base_model") or dig(teacher, "details", "repository")
    if not found and scheme == "zoo":
        found = next((s.data.get("hub") for s in get_registry().specs("teacher") if s.name == name), None)
    return str(found) if found and HUB.fullmatch(str(found)) else None


def _what(files: RunInfo) -> list[str]:
    student, plan = files.student, files.plan
    teacher = dig(plan, "teacher", "title") or dig(student, "teacher", "title") or dig(student, "teacher", "ref")
    family, parameters = dig(student, "family", default="unknown"), count(student.get("parameters"))
    line = f"A model of the family {family} with {parameters} parameters, "
    line += f"converted from {teacher}" if teacher else "trained"
    line += (
        f" by xarch {student.get('xarch', '')} (target {dig(plan, 'student', 'title') or student.get('target', '?')})."
    )
    sites = names_of(student, "sites")
    parts = [f"# {escape(files.title)}", "", escape(line), ""]
    if sites:
        parts += [escape(f"New modules: {', '.join(sorted(sites, key=natural))}."), ""]
    if is_tiny(files):
        parts += ["**A trial run with a truncated model. Do not use it.**", ""]
    return parts


def _method(files: RunInfo) -> list[str]:
    plan, unit = files.plan, files.unit
    stages = []
    for stage in rows_of(plan, "stages"):
        summary = files.stages.get(str(stage.get("folder")))
        if summary is None:
            continue
        name = str(stage.get("name"))
        settings, read = files.settings(name), count(summary.get("units", stage.get("units")))
        kind = f"{settings.get('kind', '–')}, {settings.get('scope', '–')}"
        why = undone_of(summary)
        undone = escape(f"; rolled back: {why}") if why else ""
        stages.append(f"1. {escape(name)} ({escape(kind)}): {read} {escape(unit)}s{undone}")
    parts = ["## How it was made", ""]
    if dig(plan, "data", "title"):
        parts += [f"Data: {escape(str(dig(plan, 'data', 'title')))} ({escape(str(dig(plan, 'data', 'ref')))}).", ""]
    parts += [*stages, ""] if stages else []
    if dig(plan, "command"):
        parts += fenced(str(dig(plan, "command")), "sh")
    if files.config_text:
        parts += [
            "",
            "<details><summary>Configuration</summary>",
            "",
            *fenced(files.config_text, "yaml"),
            "",
            "</details>",
        ]
    return [*parts, ""]


def _figures(files: RunInfo) -> list[str]:
    student = table_of(files.eval, "student")
    if not student or is_tiny(files):
        return []
    others = {"teacher": table_of(files.eval, "teacher"), **table_of(files.eval, "baselines")}
    others = {str(who): f for who, f in others.items() if isinstance(f, dict) and f}
    rows = [
        f"| {escape(with_unit(name, files.unit_of(name)))} | {figure(name, value)} | "
        + "".join(f"{figure(name, f.get(name))} | " for f in others.values()).rstrip()
        for name, value in student.items()
    ]
    held = f"Held-out data, {number(dig(files.eval, 'n'))} {files.unit}s."
    head = " | ".join(["figure", "student", *(escape(who) for who in others)])
    return ["## Quality", "", escape(held), "", f"| {head} |", "|---|" + "---:|" * (1 + len(others)), *rows, ""]


def _speed(files: RunInfo) -> list[str]:
    """Return size and speed of every export, beside the teacher's graphs in the same run where they were measured."""
    rows, whole = [], size(dig(files.plan, "teacher", "weight_bytes"))
    for profile, described in _passed(files).items():
        bench = table_of(files.bench, profile)
        rows.append(f"| {escape(profile)} | size | {size(dig(described, 'bytes'))} | {whole} |")
        for kind in ("cases", "graphs"):
            for name, measured in table_of(bench, kind).items():
                own, other = (
                    dig(f, "throughput") or f for f in (measured, table_of(bench, "teacher", kind, str(name)))
                )
                if dig(own, "per_second"):
                    unit = str(dig(own, "unit", default=""))
                    speeds = [rate(dig(f, "per_second"), unit) for f in (own, other)]
                    rows.append(f"| {escape(profile)} | {escape(str(name))} | {' | '.join(speeds)} |")
    if not rows:
        return []
    machines = {str(dig(b, "machine", "processor", default="")): dig(b, "threads") for b in files.bench.values()}
    told = "; ".join(f"{name}, {plural(n, 'thread')}" for name, n in machines.items() if name)
    said = [escape(f"Measured on {told}."), ""] if told else []
    return ["## Size and speed", "", *said, "| export | what | student | teacher |", "|---|---|---:|---:|", *rows, ""]


def _samples(files: RunInfo) -> list[str]:
    """Return a few texts of the student; pictures stay in the report."""
    parts: list[str] = []
    for sample in rows_of(files.eval, "samples")[:SAMPLES]:
        given, made = sample.get("prompt") or sample.get("input"), sample.get("student")
        if all(isinstance(v, str) and v.strip() and not v.endswith(".png") for v in (given, made)):
            parts += [*fenced(f"{given}\n--- student:\n{made}"), ""]
    return ["## Samples", "", *parts] if parts and not is_tiny(files) else []


def _limits(files: RunInfo) -> list[str]:
    data = dig(files.plan, "data", "title") or dig(files.plan, "data", "ref")
    lines = [escape(str(files.wording("limits")))] if files.wording("limits") else []
    if dig(files.plan, "teacher", "ref"):
        lines.append("The student has the teacher's biases and faults, and differs from it as the figures above say.")
    if data:
        lines.append(escape(f"It was trained and evaluated on {data}; elsewhere nothing was measured."))
    return ["## Limits", "", *(f"- {line}" for line in lines), ""] if lines else []


def _use(files: RunInfo) -> list[str]:
    parts = ["## Use", "", *fenced('import xarch\n\nmodel = xarch.load("FOLDER_OF_THIS_FILE")', "python"), ""]
    for profile, described in _passed(files).items():
        folder = f"onnx/{profile}"
        graphs = ", ".join(map(str, table_of(described, "graphs")))
        text = (
            f"ONNX for {profile} ({size(dig(described, 'bytes'))}): {graphs}, in {folder} (of a run: export/{profile})"
        )
        runner = table_of(described, "runner")
        parts += [escape(f"{text}. {'It runs alone:' if runner else ''}").rstrip(), ""]
        if runner:
            install = f"pip install {' '.join(names_of(runner, 'packages'))}"
            command = f"python {folder}/{runner.get('program')} {runner.get('usage')}"
            parts += [*fenced(f"{install}\n{command}", "sh"), ""]
    return parts


def _passed(files: RunInfo) -> dict[str, dict[str, Any]]:
    return {name: p for name, p in files.profile.items() if dig(files.parity, name, "passed", default=False)}


def _licence(files: RunInfo) -> list[str]:
    teacher = table_of(files.plan, "teacher")
    text = licence_text(dig(teacher, "details", "licence"), bool(teacher))
    return ["## Licence", "", escape(text), ""]


def _citation(files: RunInfo) -> list[str]:
    """Return the paper of the method."""
    from xarch.config.packaged import method_of
    from xarch.errors import XarchError

    try:
        head = method_of(files.method) if files.method else None
    except XarchError:
        head = None
    if head is None or not head.paper:
        return []
    link = escape(head.paper)
    if ARXIV.match(head.paper):
        link = f"[{link}](https://arxiv.org/abs/{head.paper.removeprefix('arXiv:')})"
    return ["## Citation", "", f"The method is {escape(head.title)}: {link}.", ""]
