"""Teacher, student and baselines on held-out data, and samples of their output."""

from __future__ import annotations

from functools import partial
from typing import Any

from xarch.report.blocks import Block, Details, Figure, Figures, Image, Sample, Samples, Section, Table, Text
from xarch.report.files import RunInfo, dig, rows_of, table_of
from xarch.report.outcome import is_tiny
from xarch.report.plots.bars import comparison_svg
from xarch.report.wording import figure, number, with_unit, words

FIGURES = 4
MANY = 8
"""More models than these are rows of the table, and their operating points have no bars."""
POINT = "student, "
FEW_PARTS = 4
"""Figures of parts, such as ``recall.CLASS``, that are shown beside those of the whole; more are folded away."""


def quality(files: RunInfo) -> Section | None:
    """Show every evaluated figure as bars and in a table."""
    if not files.eval:
        return None
    who = _everyone(files)
    metric = str(dig(files.eval, "metric", default=""))
    names = list(dict.fromkeys(name for figures in who.values() for name in figures))
    names.sort(key=lambda n: (n != metric, n not in table_of(files.eval, "gated")))
    figures = []
    # A curve of its own shows many operating points better than bars.
    drawn = who if len(who) <= MANY else {w: f for w, f in who.items() if not w.startswith(POINT)}
    parts = [name for name in names if "." in name and name != metric]
    for name in [name for name in names if name not in parts][:FIGURES]:
        values = [(w, float(f[name])) for w, f in drawn.items() if isinstance(f.get(name), int | float)]
        svg = comparison_svg(f"quality-{name}", values, partial(figure, name))
        if svg is not None:
            text = (
                f"{with_unit(name, files.unit_of(name))}: "
                + ", ".join(f"{w} {figure(name, v)}" for w, v in values)
                + "."
            )
            figures.append(Figure(svg, text, with_unit(name, files.unit_of(name))))
    rows = {n: [with_unit(n, files.unit_of(n)), *(figure(n, f.get(n)) for f in who.values())] for n in names}
    folded = [rows.pop(name) for name in parts] if FEW_PARTS < len(parts) < len(rows) else []
    better = "higher is better" if dig(files.eval, "higher_is_better", default=False) else "lower is better"
    n = dig(files.eval, "n")
    note = f"Headline metric: {metric}, {better}" + (f"; {number(n)} held-out {files.unit}s." if n else ".")
    blocks: list[Block] = [Figures(figures)] if figures else []
    blocks += [_table(list(who), list(rows.values()), note)]
    blocks += [Details(f"{len(folded)} figures of parts", [_table(list(who), folded, "")])] if folded else []
    blocks += _controls(files)
    if is_tiny(files):
        blocks.insert(0, Text("A trial run trains for a few steps only: these figures do not measure quality.", "warn"))
    return Section("Quality", blocks)


def _table(who: list[str], rows: list[list[str]], note: str) -> Table:
    """Return a column for each model, or a row for each if there are many."""
    head = ["figure", *who]
    if len(who) > MANY:
        head, *rows = [list(column) for column in zip(head, *rows, strict=True)]
        head[0] = "model"
    return Table(head, rows, "l" + "r" * (len(head) - 1), note)


def _controls(files: RunInfo) -> list[Block]:
    """Show what each control keeps: a figure of a rival means little without its budget."""
    kept = {str(name): facts for name, facts in table_of(files.eval, "controls").items() if isinstance(facts, dict)}
    if not kept:
        return []
    keys = list(dict.fromkeys(str(key) for facts in kept.values() for key in facts))
    rows = [[name, *(_shown(facts.get(key)) for key in keys)] for name, facts in kept.items()]
    note = "Controls: the teacher at the student's budget, without training."
    return [Table(["control", *(words(key) for key in keys)], rows, "l" * (1 + len(keys)), note)]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{words(str(key))} {_shown(each)}" for key, each in value.items())
    return number(value) if isinstance(value, int | float) else str(value if value is not None else "")


def _everyone(files: RunInfo) -> dict[str, dict[str, float]]:
    who = {"teacher": table_of(files.eval, "teacher"), "student": table_of(files.eval, "student")}
    who |= table_of(files.eval, "baselines")
    who |= {f"{POINT}{name}": figures for name, figures in table_of(files.eval, "variants").items()}
    return {str(name): figures for name, figures in who.items() if isinstance(figures, dict) and figures}


def samples(files: RunInfo) -> Section | None:
    """Show outputs of teacher and student for the same inputs, as text or as PNG files of the run folder. Outputs in
    another form are shown by a section of the metric's plugin."""
    shown = []
    for sample in rows_of(files.eval, "samples"):
        values = {str(k): v for k, v in ((k, _value(files, v)) for k, v in sample.items()) if v is not None}
        given = values.pop("prompt", None) or values.pop("input", None)
        if given is not None and values:
            shown.append(Sample(given, tuple(values.items())))
    return Section("Samples", [Samples(shown)]) if shown else None


def _value(files: RunInfo, value: Any) -> str | Image | None:
    if not isinstance(value, str):
        return None
    if not value.endswith(".png"):
        return value
    data = files.file(value)
    try:
        return None if data is None else Image(data)
    except ValueError:
        return None
