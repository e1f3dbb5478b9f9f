"""The page of a study: one table and one plot per metric, and a list of all runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch.numbers import NONE, duration, known, number
from xarch.report.blocks import Block, Cell, Code, Figure, Section, Table, Text, Tone
from xarch.report.draw import lines
from xarch.report.plots.dots import dots_svg
from xarch.report.render_html import to_html

HEAD = ("arm", "n", "mean", "sd", "difference", "95 % interval", "p")
ALIGN = "lrrrrrr"
SIGNIFICANT = 0.05


def study_page(study: Mapping[str, Any]) -> str:
    """Return report.html, built from the contents of study.json."""
    header, facts = study["header"], study["facts"]
    runs = [v for k, v in facts.items() if k.startswith("run ")]
    done = sum(r["state"] == "done" for r in runs)
    curve = _curve(header.get("against"), facts)
    sections = [] if curve is None else [curve]
    sections += [_metric(m, about, facts, header["control"]) for m, about in facts["metrics"].items()]
    sections += [_runs(runs), Section("Reproduce", [Code(header["command"], "sh")])]
    badge = ("done", "good") if header["finished"] else (f"{done} of {len(runs)} runs", "warn")
    seeds = ", ".join(map(str, header["seeds"]))
    title = header["benchmark"].removeprefix("study_")
    return to_html(f"Study {title}", f"seeds {seeds} · xarch {header['versions']['xarch']}", badge, sections)


def _curve(against: str | None, facts: Mapping[str, Any]) -> Section | None:
    """Return one curve for every arm: the first metric over another figure, the means of its points on the axes."""
    metric = next(iter(facts["metrics"]), "")
    if against is None or against not in facts["metrics"] or against == metric:
        return None
    places = {s["arm"]: s["mean"] for s in _summaries(against, facts)}
    series: dict[str, list[tuple[float, float]]] = {}
    for summary in _summaries(metric, facts):
        base, _, point = summary["arm"].partition(",")
        value, place = summary["mean"], places.get(summary["arm"])
        if point != " pooled" and value is not None and place is not None:
            series.setdefault(base, []).append((place, value))
    every = [place for points in series.values() for place, _ in points]
    teacher = facts["metrics"][metric]["teacher"]
    if known(teacher) and every:
        series["teacher"] = [(min(every), teacher), (max(every), teacher)]
    title = f"{metric} of every arm over {against}: means of its runs"
    figure = lines("curve", {arm: sorted(points) for arm, points in series.items()}, title, against)
    return None if figure is None else Section(f"{metric} against {against}", [figure])


def rows(metric: str, about: Mapping[str, Any], facts: Mapping[str, Any]) -> list[list[Cell]]:
    """Return the table of one metric, with the columns of :data:`HEAD`."""
    made = []
    for summary in _summaries(metric, facts):
        test = summary.get("difference") or {}
        mean = test.get("mean")
        cells = [summary["arm"] + (" (control)" if _is_control(summary, metric, facts) else ""), str(summary["n"])]
        cells += [_number(summary["mean"]), _number(summary["sd"])]
        cells += [NONE if mean is None else ("+" if mean > 0 else "") + number(mean)]
        low, high, p = test.get("low"), test.get("high"), test.get("p")
        cells += [NONE if low is None else f"{number(low)} … {number(high)}", NONE if p is None else f"{p:.2g}"]
        tone = _tone(mean, p, about["higher_is_better"])
        made.append([Cell(text, tone if column >= 4 else "") for column, text in enumerate(cells)])
    return made


def _summaries(metric: str, facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [v for k, v in facts.items() if k.startswith("arm ") and v["metric"] == metric]


def _is_control(summary: Mapping[str, Any], metric: str, facts: Mapping[str, Any]) -> bool:
    return any(other["control"] == summary["arm"] for other in _summaries(metric, facts))


def _tone(mean: float | None, p: float | None, higher_is_better: bool | None) -> Tone:
    if mean is None or p is None or p >= SIGNIFICANT or higher_is_better is None:
        return ""
    return "good" if (mean > 0) == higher_is_better else "bad"


def _metric(metric: str, about: Mapping[str, Any], facts: Mapping[str, Any], control: str | None) -> Section:
    unit = f"{metric} ({about['unit']})" if about["unit"] else metric
    better = {True: "higher is better", False: "lower is better", None: ""}[about["higher_is_better"]]
    notes = [better, f"teacher {number(about['teacher'])}" if known(about["teacher"]) else ""]
    notes += ["differences are paired by seed; p: two-sided paired t-test" if control else "no control arm is set"]
    blocks: list[Block] = [Table(HEAD, rows(metric, about, facts), ALIGN, "; ".join(n for n in notes if n))]
    arms = [(s["arm"], list(s["values"].values())) for s in _summaries(metric, facts)]
    svg = dots_svg(f"dots-{metric}", arms, unit, about["teacher"])
    if svg is not None:
        words = "; ".join(f"{arm}: {', '.join(map(number, values))}" for arm, values in arms)
        caption = "Each dot is a seed; the bar is the mean" + (
            "; the dashed line is the teacher." if known(about["teacher"]) else "."
        )
        blocks.append(Figure(svg, words, caption, wide=True))
    return Section(metric, blocks)


def _runs(runs: list[Mapping[str, Any]]) -> Section:
    tones: dict[str, Tone] = {"done": "good", "failed": "bad"}
    body = []
    for run in runs:
        note = run.get("reason") or run.get("gate") or ""
        state = Cell(run["state"], tones.get(run["state"], "quiet"))
        body.append([Cell(run["arm"]), Cell(str(run["seed"])), state, Cell(duration(run["seconds"])), Cell(note)])
    blocks: list[Block] = [Table(("arm", "seed", "state", "time", "note"), body, "lrlrl")]
    if any(run.get("gate") for run in runs):
        blocks.append(Text("Runs that missed a quality gate are included in the tables.", "quiet"))
    return Section("Runs", blocks)


def _number(value: Any) -> str:
    return number(value) if known(value) else NONE
