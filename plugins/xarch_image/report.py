"""Report sections of image classifiers: pictures with both answers, recall by class, and which layers are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xarch.report import Block, Cell, Details, Image, Picture, RunInfo, Section, Table, Text, heat
from xarch_image.frequency import by_frequency

FEW = 12
"""Classes of a table that is shown whole; of more, the worst and the best are shown."""


def sections(run: RunInfo) -> list[Section]:
    """Return the sections for which the evaluation has samples."""
    entries = [s for s in run.eval.get("samples", []) if isinstance(s, dict)]
    made = [_pictures(entries), by_frequency(run, entries), _recall(entries), _layers(entries), _speed(run)]
    return [section for section in made if section is not None]


def _pictures(entries: Sequence[Mapping[str, Any]]) -> Section | None:
    shown = []
    for entry in entries:
        answers = entry.get("answers")
        if not isinstance(entry.get("png"), str) or not isinstance(answers, dict):
            continue
        words = [f"label: {entry['label']}"] if entry.get("label") is not None else []
        words += [f"{name}: {_answer(said)}" for name, said in sorted(answers.items(), reverse=True)]
        effort, picture = entry.get("effort"), entry["png"]
        if isinstance(effort, dict) and isinstance(effort.get("png"), str):
            mean, least, most = (100 * float(effort.get(key) or 0.0) for key in ("mean", "least", "most"))
            words.append(f"computed: {mean:.0f} %, from {least:.0f} (white) to {most:.0f} (red)")
            picture = effort["png"]
        shown.append(Image(_decoded(picture), "; ".join(words)))
    if not shown:
        return None
    text = "Held-out pictures: the first ones, then some that only the teacher, and only the student, gets right."
    if any("effort" in entry for entry in entries):
        text += " Beside each, where the student computed: the share of what it could, without tokens before the grid."
    return Section("Pictures", [Picture(shown, "; ".join(image.caption for image in shown), text)])


def _answer(said: Mapping[str, Any]) -> str:
    mark = (" (right)" if said.get("right") else " (wrong)") if said.get("judged") else ""
    return f"{said.get('class')}, {100 * float(said.get('share', 0)):.0f} %{mark}"


def _recall(entries: Sequence[Mapping[str, Any]]) -> Section | None:
    found: list[Any] = next((e["recall"] for e in entries if isinstance(e.get("recall"), list)), [])
    rows = [r for r in found if isinstance(r, dict)]
    if not rows:
        return None
    both = any(r.get("teacher") is not None for r in rows)
    counted = any(r.get("images") is not None for r in rows)
    ordered = sorted(rows, key=lambda r: -(r.get("images") or 0)) if counted else list(rows)
    table = _table(ordered, both, counted)
    blocks: list[Block] = [table]
    if len(rows) > FEW:
        worst = sorted(rows, key=lambda r: float(r.get("student") or 0))
        blocks = [_table([*worst[: FEW // 2], *worst[-FEW // 2 :]], both, counted, "worst and best classes")]
        blocks.append(Details(f"all {len(rows)} classes", [table]))
    return Section("Recall by class", blocks)


def _table(rows: Sequence[Mapping[str, Any]], both: bool, counted: bool, caption: str = "") -> Table:
    head = ["class", *(["training images"] if counted else []), *(["teacher"] if both else []), "student"]
    body: list[list[str | Cell]] = []
    for row in rows:
        own, other = row.get("student"), row.get("teacher")
        worse = both and own is not None and other is not None and own < other - 0.1
        cells: list[str | Cell] = [str(row.get("class"))]
        cells += [str(row.get("images"))] if counted else []
        cells += [_share(other)] if both else []
        body.append([*cells, Cell(_share(own), "bad" if worse else "")])
    return Table(head, body, "l" + "r" * (len(head) - 1), caption)


def _layers(entries: Sequence[Mapping[str, Any]]) -> Section | None:
    found = next((e for e in entries if isinstance(e.get("cka"), list)), None)
    if found is None:
        return None
    columns = [str(name) for name in found["teacher"]]
    rows = [
        (str(name), dict(zip(columns, map(float, row), strict=True)))
        for name, row in zip(found["student"], found["cka"], strict=True)
    ]
    text = "; ".join(f"{name}: " + ", ".join(f"{c} {v:.2f}" for c, v in values.items()) for name, values in rows)
    caption = (
        f"Linear CKA of the student's layers (rows) with the teacher's (columns), {found['images']} held-out pictures; "
        "1 means equal up to rotation and scale."
    )
    figure = heat("cka", rows, columns, f"CKA of layers. {text}", caption)
    return None if figure is None else Section("Layers alike", [figure])


def _speed(run: RunInfo) -> Section | None:
    """Say so where an exported student is no faster than its teacher on the same runtime."""
    slow = []
    for profile, bench in run.bench.items():
        given = bench.get("teacher")
        teacher = given if isinstance(given, dict) else {}
        precision = f", {teacher['dtype']}" if teacher.get("dtype") else ""
        slower = {n: r for n, r in teacher.get("speed_up", {}).items() if isinstance(r, int | float) and r <= 1}
        slow += [f"{profile}, {name}: {r:.2f}× the teacher's speed{precision}" for name, r in slower.items()]
    if not slow:
        return None
    words = "; ".join(slow)
    return Section("Speed", [Text(f"The student is not faster than its teacher: {words}.", "bad")])


def _share(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "–"


def _decoded(text: str) -> bytes:
    import base64

    return base64.b64decode(text)
