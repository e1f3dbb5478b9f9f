"""What fields add to a report: renders side by side with error maps, sizes, and the time to a PSNR."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xarch.numbers import count, percent, size
from xarch_pvd.evaluate.renders import renders_svg

LEVEL = 2.0
"""Steps between the PSNR levels of the table of times, dB."""
LEVELS = 8


def sections(path: Path) -> list[dict[str, str]]:
    """Sections of a run's report, as far as its files go."""
    views = [s for s in _json(path / "eval.json").get("samples", []) if "figures" in s]
    shown = [s for s in views if "png" in s]
    found = [_renders(shown), _views(views, shown), _sizes(path), _times(path)] if shown else [_times(path)]
    return [section for section in found if section is not None]


def _renders(shown: list[dict[str, Any]]) -> dict[str, str]:
    text = "Held-out views. Differences are absolute, the mean over the three colours; values are in [0, 1]."
    return {"title": "Renders", "markdown": text, "svg": renders_svg(shown)}


def _views(views: list[dict[str, Any]], shown: list[dict[str, Any]]) -> dict[str, str]:
    truth = "truth" in shown[0]["png"]
    head = ["view", "student to teacher, dB", "SSIM"]
    head += ["teacher to picture, dB", "SSIM", "student to picture, dB", "SSIM"] if truth else []
    rows = [_row(head), "|---:" * len(head) + "|"]
    for sample in views:
        teacher, student = sample["figures"]["teacher"], sample["figures"]["student"]
        cells = [f"{sample['view']}{' (worst)' if sample['worst'] else ''}"]
        cells += [f"{student['psnr_teacher']:.2f}", f"{student['ssim_teacher']:.4f}"]
        for figures in (teacher, student) if truth else ():
            cells += [f"{figures['psnr']:.2f}", f"{figures['ssim']:.4f}"]
        rows.append(_row(cells))
    return {"title": "Views", "markdown": "\n".join(rows)}


def _sizes(path: Path) -> dict[str, str] | None:
    teacher, student = _json(path / "plan.json").get("teacher", {}), _json(path / "student" / "config.json")
    weights = path / "student" / "model.safetensors"
    if not student.get("parameters") or not weights.is_file() or not teacher.get("weight_bytes"):
        return None
    whole, kept = int(teacher["weight_bytes"]), weights.stat().st_size
    rows = [
        _row(["what", "parameters", "size", "share of the teacher's file"]),
        "|---|---:|---:|---:|",
        _row([f"teacher, {teacher.get('title', '')}", count(teacher.get("parameters", 0)), size(whole), "100 %"]),
        _row(["student as saved", count(student["parameters"]), size(kept), percent(kept, whole)]),
    ]
    for profile in sorted(path.glob("export/*/profile.json")):
        held = _json(profile).get("bytes")
        if held:
            name = f"student as ONNX for {profile.parent.name}"
            rows.append(_row([name, count(student["parameters"]), size(held), percent(held, whole)]))
    return {"title": "Size", "markdown": "\n".join(rows)}


def _times(path: Path) -> dict[str, str] | None:
    """When the student first reached a PSNR to its teacher, from the curve of the run."""
    rows = [r for r in _lines(path / "curve.jsonl") if "psnr_teacher" in r.get("student", {})]
    if len(rows) < 2:
        return None
    values = [float(r["student"]["psnr_teacher"]) for r in rows]
    lowest = math.floor(values[0] / LEVEL) + 1
    levels = [LEVEL * k for k in range(lowest, math.floor(max(values) / LEVEL) + 1)][-LEVELS:]
    table = [_row(["PSNR to the teacher, dB", "training seconds", "CPU seconds", "in stage"]), "|---:|---:|---:|---|"]
    for level in [*levels, max(values)]:
        row = next(r for r, v in zip(rows, values, strict=True) if v >= level)
        name = str(row["stage"]).split("-", 1)[-1]
        text = f"{level:.2f} (best)" if level == max(values) else f"{level:.0f}"
        table.append(_row([text, f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", name]))
    return {"title": "Time to PSNR", "markdown": "\n".join(table)}


def _json(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _lines(file: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file of JSON lines; the one that a crash cut is left out."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(c.replace('|', '/') for c in cells)} |"
