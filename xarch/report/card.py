"""The model card of a student: README.md with machine-readable front matter."""

from __future__ import annotations

from typing import Any

import yaml

from xarch.files.run_dir import RunDir
from xarch.report.files import RunInfo, dig, names_of, natural, read_run, rows_of, table_of
from xarch.report.outcome import is_tiny, undone_of
from xarch.report.render_markdown import escape, fenced
from xarch.report.wording import count, figure, number, size, with_unit

_NO_LICENCE = (
    "The teacher states no licence. The student's weights are derived from it, so its terms apply: check them before "
    "you redistribute the student."
)

_ONNX = """\
import os
import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

session = ort.InferenceSession({path!r})
inputs = dict(np.load({example!r}))  # example inputs; replace them with your own arrays
outputs = session.run(None, inputs)
print([(o.name, value.shape) for o, value in zip(session.get_outputs(), outputs)])
print(session.get_modelmeta().custom_metadata_map.keys())  # further facts for the calling program"""


def model_card(run: RunDir) -> str:
    """Return the model card, built from the files of a run.

    The front matter lists base model, licence, tags and figures. The text describes the student, how it was made, its
    figures with units, how to load it in torch and onnxruntime, and the licence.
    """
    files = read_run(run)
    parts = [_front(files), *_what(files), *_method(files), *_figures(files), *_use(files), *_licence(files)]
    return "\n".join(parts).rstrip() + "\n"


def _name(files: RunInfo) -> str:
    return str(dig(files.plan, "name", default=files.path.name))


def _front(files: RunInfo) -> str:
    teacher = table_of(files.student, "teacher")
    licence = dig(files.plan, "teacher", "details", "licence")
    front: dict[str, Any] = {
        "library_name": "xarch",
        "base_model": str(teacher.get("ref") or dig(files.plan, "teacher", "ref", default="unknown")).split(":", 1)[-1],
        "base_model_relation": "finetune",
        "license": str(licence).lower() if licence else "unknown",
        "tags": ["xarch", "distillation", str(dig(files.student, "target", default="student")), "onnx"],
    }
    gated = {k: v for k, v in table_of(files.eval, "gated").items() if isinstance(v, int | float)}
    if gated:
        front["metrics"] = sorted(gated)
    return "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---\n"


def _what(files: RunInfo) -> list[str]:
    student, plan = files.student, files.plan
    teacher = (
        dig(plan, "teacher", "title") or dig(student, "teacher", "title") or dig(student, "teacher", "ref", default="?")
    )
    target = str(dig(plan, "student", "title") or student.get("target", "?"))
    sites = names_of(student, "sites")
    line = f"A {dig(student, 'family', default='model')} of {count(student.get('parameters'))} parameters, converted "
    line += f"from {teacher} by xarch {student.get('xarch', '')} (target {target})."
    parts = [f"# {escape(_name(files))}", "", escape(line), ""]
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
    return [*parts, ""]


def _figures(files: RunInfo) -> list[str]:
    student = table_of(files.eval, "student")
    if not student:
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
    return ["## Figures", "", escape(held), "", f"| {head} |", "|---|" + "---:|" * (1 + len(others)), *rows, ""]


def _use(files: RunInfo) -> list[str]:
    parts = ["## Use", "", *fenced('import xarch\n\nmodel = xarch.load("FOLDER_OF_THIS_FILE")', "python"), ""]
    for target, profile in files.profile.items():
        if not dig(files.parity, target, "passed", default=False):
            continue
        graphs = list(table_of(profile, "graphs"))
        total = size(dig(profile, "bytes"))
        parts += [
            f"ONNX for {escape(target)} ({total}): {escape(', '.join(graphs))}, in the parent folder.",
            "",
        ]
        if graphs:
            folder, first = f"export/{target}", graphs[0]
            code = _ONNX.format(path=f"{folder}/{first}.onnx", example=f"{folder}/examples/{first}.npz")
            parts += [*fenced(code, "python"), ""]
    return parts


def _licence(files: RunInfo) -> list[str]:
    details = table_of(files.plan, "teacher", "details")
    licence = details.get("licence")
    text = f"The teacher's licence is {licence}; the student's weights are derived from it." if licence else _NO_LICENCE
    return ["## Licence", "", escape(text), ""]
