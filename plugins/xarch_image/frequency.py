"""Report section of long-tailed data: accuracy and calibration of every model by how frequent a class is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xarch.report import Block, Cell, RunInfo, Section, Table, Text, lines

POINTS = 20
"""Points of a curve; of more classes, each is the mean of neighbours."""
VARIANT = "variants."
MANY = 6
"""Operating points are curves of their own only if there are no more models than these beside teacher and student."""


def by_frequency(run: RunInfo, entries: Sequence[Mapping[str, Any]]) -> Section | None:
    """Return the definition of the groups, a table of all models, and a figure with a line for each; None for data
    whose classes are equally frequent."""
    found: list[Any] = next((e["groups"] for e in entries if isinstance(e.get("groups"), list)), [])
    groups = [g for g in found if isinstance(g, dict)]
    if not groups:
        return None
    blocks: list[Block] = [Text(_definition(groups)), _table(dict(_figures(run)), [str(g["name"]) for g in groups])]
    rows: list[Any] = next((e["recall"] for e in entries if isinstance(e.get("recall"), list)), [])
    figure = _figure([r for r in rows if isinstance(r, dict)], [int(g["classes"]) for g in groups])
    return Section("Classes by frequency", blocks if figure is None else [*blocks, figure])


def _definition(groups: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for group in groups:
        size, most, least = (int(group[key]) for key in ("classes", "most", "least"))
        images = f"{most}" if most == least else f"{most} to {least}"
        parts.append(f"{group['name']}: {size} {'class' if size == 1 else 'classes'} with {images} each")
    words = "Classes sorted by their training images are divided into "
    return f"{words}{'; '.join(parts)}. Accuracy of a group is the mean recall of its classes."


def _figures(run: RunInfo) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every model's name and figures: teacher, student, its operating points and exported files, and what it is
    compared with."""
    for side in ("teacher", "student"):
        if run.eval.get(side):
            yield side, run.eval[side]
    for name, figures in (run.eval.get("variants") or {}).items():
        yield f"student, {name}", figures
    for profile, figures in (run.eval.get("exports") or {}).items():
        yield f"exported, {profile}", figures
    yield from (run.eval.get("baselines") or {}).items()


def _table(models: Mapping[str, Mapping[str, Any]], groups: Sequence[str]) -> Table:
    columns = ["top1", *(f"recall.{g}" for g in groups), "ece", *(f"ece.{g}" for g in groups)]
    head = ["model", "all", *groups, "ECE all", *(f"ECE {g}" for g in groups)]
    rows: list[list[str | Cell]] = [[who, *(_share(of.get(c)) for c in columns)] for who, of in models.items()]
    caption = "ECE: expected calibration error, the distance between confidence and accuracy; lower is better."
    return Table(head, rows, "l" + "r" * (len(head) - 1), caption)


def _figure(rows: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Any:
    ordered = sorted(rows, key=lambda r: -(r.get("images") or 0))
    beside = {name: None for row in ordered for name in row.get("beside") or {}}
    if len(beside) > MANY:
        beside = {name: None for name in beside if not name.startswith(VARIANT)}
    series = {side: [row.get(side) for row in ordered] for side in ("teacher", "student")}
    for name in beside:
        said = f"student, {name.removeprefix(VARIANT)}" if name.startswith(VARIANT) else name
        series[said] = [(row.get("beside") or {}).get(name) for row in ordered]
    drawn = {who: _thinned(values) for who, values in series.items()}
    title = "Recall of the classes, from the most to the least frequent; a group ends at a dotted line"
    drawn = {who: points for who, points in drawn.items() if points}
    marks = [total + 0.5 for total in itertools.accumulate(sizes[:-1])]
    return lines("frequency", drawn, title, "rank of the class", bounds=(0.0, 1.0), marks=marks)


def _thinned(values: Sequence[Any]) -> list[tuple[float, float]]:
    known = [(n, float(v)) for n, v in enumerate(values, 1) if isinstance(v, int | float)]
    size = -(-len(known) // POINTS) or 1
    parts = [known[i : i + size] for i in range(0, len(known), size)]
    return [(sum(n for n, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def _share(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "–"
