"""Teacher, student and baselines on held-out data, and what they write."""

from __future__ import annotations

from functools import partial

from xarch.report.blocks import Block, Figure, Figures, Samples, SampleText, Section, Table, Text
from xarch.report.files import RunFiles, dig, rows_of, table_of
from xarch.report.outcome import is_tiny
from xarch.report.plots.bars import comparison_svg
from xarch.report.wording import figure, number, with_unit

FIGURES = 4


def quality(files: RunFiles) -> Section | None:
    """Bars and a table of every evaluated figure."""
    if not files.eval:
        return None
    who = _everyone(files)
    metric = str(dig(files.eval, "metric", default=""))
    names = list(dict.fromkeys(name for figures in who.values() for name in figures))
    names.sort(key=lambda n: (n != metric, n not in table_of(files.eval, "gated")))
    unit = {metric: str(dig(files.eval, "unit", default=""))}
    figures = []
    for name in names[:FIGURES]:
        values = [(w, float(f[name])) for w, f in who.items() if isinstance(f.get(name), int | float)]
        svg = comparison_svg(f"quality-{name}", values, partial(figure, name))
        if svg is not None:
            text = (
                f"{with_unit(name, unit.get(name, ''))}: "
                + ", ".join(f"{w} {figure(name, v)}" for w, v in values)
                + "."
            )
            figures.append(Figure(svg, text, with_unit(name, unit.get(name, ""))))
    rows = [[with_unit(n, unit.get(n, "")), *(figure(n, f.get(n)) for f in who.values())] for n in names]
    better = "higher is better" if dig(files.eval, "higher_is_better", default=False) else "lower is better"
    n = dig(files.eval, "n")
    note = f"Headline metric: {metric}, {better}" + (f"; {number(n)} {_counted(files)} held out." if n else ".")
    blocks: list[Block] = [Figures(figures)] if figures else []
    blocks += [Table(["figure", *who], rows, "l" + "r" * len(who), note)]
    if is_tiny(files):
        blocks.insert(0, Text("A trial run trains for a few steps: these figures say nothing about quality.", "warn"))
    return Section("Quality", blocks)


def _everyone(files: RunFiles) -> dict[str, dict[str, float]]:
    who = {"teacher": table_of(files.eval, "teacher"), "student": table_of(files.eval, "student")}
    who |= table_of(files.eval, "baselines")
    return {str(name): figures for name, figures in who.items() if isinstance(figures, dict) and figures}


def _counted(files: RunFiles) -> str:
    return f"{dig(files.plan, 'unit', default='sample')}s"


def samples(files: RunFiles) -> Section | None:
    """What teacher and student make of the same prompts; samples without a prompt are for a plugin's section."""
    found = rows_of(files.eval, "samples")
    shown = [
        SampleText(str(s.get("prompt", "")), tuple((str(k), str(v)) for k, v in s.items() if k != "prompt"))
        for s in found
        if isinstance(s, dict) and "prompt" in s
    ]
    return Section("Samples", [Samples(shown)]) if shown else None
