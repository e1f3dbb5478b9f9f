"""The model card of a student: README.md with machine-readable front matter."""

from __future__ import annotations

from typing import Any

import yaml

from xarch.files.run_dir import RunDir
from xarch.report.files import RunFiles, dig, read_run, rows_of, table_of
from xarch.report.outcome import is_tiny
from xarch.report.render_markdown import escape, fenced
from xarch.report.sites import sites_of
from xarch.report.wording import count, figure, number, size, with_unit

_NO_LICENCE = (
    "The teacher states no licence. The student's weights derive from it, so its terms apply: find them out before "
    "passing the student on."
)

_ONNX = """\
import json
import os
import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

session = ort.InferenceSession({path!r})
facts = session.get_modelmeta().custom_metadata_map
held = {{s["name"]: np.full(s["shape"], s["fill"], s["dtype"]) for s in json.loads(facts["xarch.states"])}}
print([(i.name, i.shape, i.type) for i in session.get_inputs() if i.name not in held])
# Call session.run(None, {{**your_inputs, **held}}); every state X comes back as present_X for the next call."""


def model_card(run: RunDir) -> str:
    """Model card from the files of a run.

    Front matter: base model, licence, tags, figures. Text: what it is, how it was made, figures with units, how to
    load it in torch and onnxruntime, licence.
    """
    files = read_run(run)
    parts = [_front(files), *_what(files), *_method(files), *_figures(files), *_use(files), *_licence(files)]
    return "\n".join(parts).rstrip() + "\n"


def _name(files: RunFiles) -> str:
    return str(dig(files.plan, "name", default=files.path.name))


def _front(files: RunFiles) -> str:
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


def _what(files: RunFiles) -> list[str]:
    student, plan = files.student, files.plan
    teacher = (
        dig(plan, "teacher", "title") or dig(student, "teacher", "title") or dig(student, "teacher", "ref", default="?")
    )
    target, sites = str(student.get("target", "?")), sites_of(files)
    line = f"A {dig(student, 'family', default='model')} of {count(student.get('parameters'))} parameters, converted "
    line += f"from {teacher} by xarch {student.get('xarch', '')} (target {target})."
    parts = [f"# {escape(_name(files))}", "", escape(line), ""]
    if sites.every:
        parts += [escape(f"{len(sites.replaced)} of {len(sites.every)} places of the teacher were replaced."), ""]
    if is_tiny(files):
        parts += ["**A trial run on a model cut to two layers: not for use.**", ""]
    return parts


def _method(files: RunFiles) -> list[str]:
    plan, unit = files.plan, str(dig(files.plan, "unit", default="unit"))
    stages = [
        f"1. {escape(str(s.get('name')))} ({escape(str(s.get('kind')))}, {escape(str(s.get('scope')))}): "
        f"{count(files.stages[str(s.get('folder'))].get('units', s.get('units')))} {escape(unit)}s"
        for s in rows_of(plan, "stages")
        if s.get("folder") in files.stages
    ]
    parts = ["## How it was made", ""]
    if dig(plan, "data", "title"):
        parts += [f"Data: {escape(str(dig(plan, 'data', 'title')))} ({escape(str(dig(plan, 'data', 'ref')))}).", ""]
    parts += [*stages, ""] if stages else []
    if dig(plan, "command"):
        parts += fenced(str(dig(plan, "command")), "sh")
    return [*parts, ""]


def _figures(files: RunFiles) -> list[str]:
    student = table_of(files.eval, "student")
    if not student:
        return []
    teacher, metric = table_of(files.eval, "teacher"), dig(files.eval, "metric", default="")
    rows = [
        f"| {escape(with_unit(name, str(dig(files.eval, 'unit', default='')) if name == metric else ''))} | "
        f"{figure(name, teacher.get(name))} | {figure(name, value)} |"
        for name, value in student.items()
    ]
    held = f"Held-out data, {number(dig(files.eval, 'n'))} {dig(files.plan, 'unit', default='sample')}s."
    return ["## Figures", "", escape(held), "", "| figure | teacher | student |", "|---|---:|---:|", *rows, ""]


def _use(files: RunFiles) -> list[str]:
    parts = ["## Use", "", *fenced('import xarch\n\nmodel = xarch.load("FOLDER_OF_THIS_FILE")', "python"), ""]
    for target, profile in files.profile.items():
        if not dig(files.parity, target, "passed", default=False):
            continue
        graphs = list(table_of(profile, "graphs"))
        total = size(dig(profile, "bytes"))
        parts += [f"ONNX for {escape(target)} ({total}): {escape(', '.join(graphs))}, beside this folder.", ""]
        if graphs:
            first = "decode_1" if "decode_1" in graphs else graphs[0]
            parts += [*fenced(_ONNX.format(path=f"export/{target}/{first}.onnx"), "python"), ""]
    return parts


def _licence(files: RunFiles) -> list[str]:
    details = table_of(files.plan, "teacher", "details")
    licence = details.get("licence")
    text = f"The teacher is under {licence}; the student's weights derive from it." if licence else _NO_LICENCE
    return ["## Licence", "", escape(text), ""]
