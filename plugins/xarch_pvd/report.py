"""The report's pictures: teacher, student and their difference side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIDE, GAP, HEADING = 200, 8, 22
ORDER = ("truth", "teacher", "student", "error")
TITLES = {"truth": "picture", "teacher": "teacher", "student": "student", "error": "difference, 8 times"}


def sections(path: Path) -> list[dict[str, str]]:
    """Sections of a run's report; none if its evaluation has no pictures."""
    file = path / "eval.json"
    if not file.is_file():
        return []
    shown = [s for s in json.loads(file.read_text(encoding="utf-8"))["samples"] if "png" in s]
    if not shown:
        return []
    rows = ["| view | PSNR to the teacher, dB |", "|---|---|"]
    rows += [f"| {s['view']} | {s['psnr_teacher']:.2f} |" for s in shown]
    return [{"title": "Renders", "markdown": "\n".join(rows), "svg": _svg(shown)}]


def _svg(shown: list[dict[str, Any]]) -> str:
    names = [n for n in ORDER if n in shown[0]["png"]]
    width, height = len(names) * (SIDE + GAP), HEADING + len(shown) * (SIDE + GAP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    for column, name in enumerate(names):
        left = column * (SIDE + GAP)
        parts.append(f'<text x="{left}" y="15" font-size="13">{TITLES[name]}</text>')
        for row, sample in enumerate(shown):
            top = HEADING + row * (SIDE + GAP)
            parts.append(
                f'<image x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" '
                f'href="data:image/png;base64,{sample["png"][name]}"/>'
            )
    return "".join([*parts, "</svg>"])
