"""Report sections of fields: renders with error maps, sizes, and the time to reach a PSNR."""

from __future__ import annotations

import math
from typing import Any

from xarch.numbers import count, percent, size
from xarch.report import Image, Picture, RunInfo, Section, Table
from xarch_pvd.evaluate.renders import renders_svg

LEVEL = 2.0
"""Step between the PSNR levels of the table of times, dB."""
LEVELS = 8


def sections(run: RunInfo) -> list[Section]:
    """Return the sections for which the run has files."""
    views = [s for s in run.eval.get("samples", []) if isinstance(s, dict) and "figures" in s]
    shown = [s for s in views if "png" in s]
    found = [_renders(shown), _views(views), _sizes(run), _times(run)] if shown else [_times(run)]
    return [section for section in found if section is not None]


def _renders(shown: list[dict[str, Any]]) -> Section:
    note = (
        "Held-out views. Error maps show the absolute difference, averaged over the colour channels; values in [0, 1]."
    )
    image = Image(renders_svg(shown).encode())
    return Section("Renders", [Picture([image], "renders of teacher and student with error maps", note)])


def _views(views: list[dict[str, Any]]) -> Section:
    pictured = sum("psnr" in sample["figures"]["student"] for sample in views)
    truth = pictured > 0
    head = ["view", "student vs teacher, dB", "SSIM"]
    head += ["teacher vs image, dB", "SSIM", "student vs image, dB", "SSIM"] if truth else []
    rows = []
    for sample in views:
        teacher, student = sample["figures"]["teacher"], sample["figures"]["student"]
        cells = [f"{sample['view']}{' (worst)' if sample['worst'] else ''}"]
        cells += [f"{student['psnr_teacher']:.2f}", f"{student['ssim_teacher']:.4f}"]
        for figures in (teacher, student) if truth else ():
            cells += [f"{figures['psnr']:.2f}", f"{figures['ssim']:.4f}"] if "psnr" in figures else ["no image", ""]
        rows.append(cells)
    title = "Views" if pictured in (0, len(views)) else f"Views, {pictured} of {len(views)} with an image"
    return Section(title, [Table(head, rows, "r" * len(head))])


def _sizes(run: RunInfo) -> Section | None:
    teacher, student, kept = run.plan.get("teacher") or {}, run.student, run.student_bytes
    if not student.get("parameters") or not kept or not teacher.get("weight_bytes"):
        return None
    whole, parameters = int(teacher["weight_bytes"]), count(student["parameters"])
    rows = [
        [f"teacher, {teacher.get('title', '')}", count(teacher.get("parameters", 0)), size(whole), "100 %"],
        ["student, saved", parameters, size(kept), percent(kept, whole)],
    ]
    for profile, facts in run.profile.items():
        if facts.get("bytes"):
            exported = int(facts["bytes"])
            rows.append([f"student, ONNX for {profile}", parameters, size(exported), percent(exported, whole)])
    return Section("Size", [Table(["model", "parameters", "bytes", "share of the teacher's file"], rows, "lrrr")])


def _times(run: RunInfo) -> Section | None:
    """Return when the student first reached each PSNR against its teacher, from the run's curve."""
    rows = [r for r in run.quality if "psnr_teacher" in r.get("student", {})]
    if len(rows) < 2:
        return None
    values = [float(r["student"]["psnr_teacher"]) for r in rows]
    lowest = math.floor(values[0] / LEVEL) + 1
    levels = [LEVEL * k for k in range(lowest, math.floor(max(values) / LEVEL) + 1)][-LEVELS:]
    table = []
    for level in [*levels, max(values)]:
        row = next(r for r, v in zip(rows, values, strict=True) if v >= level)
        name = str(row["stage"]).split("-", 1)[-1]
        text = f"{level:.2f} (best)" if level == max(values) else f"{level:.0f}"
        table.append([text, f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", name])
    head = ["PSNR vs teacher, dB", "training seconds", "CPU seconds", "stage"]
    return Section("Time to PSNR", [Table(head, table, "rrrl")])
