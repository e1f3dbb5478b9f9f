"""Report section of acm students: quality against the share of learners that ran, and where they ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch.report import Block, Cell, Figure, Figures, RunInfo, Section, Table, heat, lines

GATES = {"mean": "gates, mean", "deviation": "gates, deviation"}
CURVES = {
    "gated": "gates choose",
    "static": "fixed learners",
    "bucketed": "fixed room",
    "exit": "early exit",
    "shuffled": "gates shuffled",
    "truncated": "truncated, untrained",
}
SHARE = "share."


def sections(run: RunInfo) -> list[Section]:
    """Return a table and a curve of all operating points, and the learners of every module; nothing for students of
    other targets, and nothing before they are evaluated."""
    if str(run.student.get("target", "")).rpartition(":")[2] != "acm" or not run.eval.get("student"):
        return []
    metric = str(run.eval.get("metric", ""))
    points = _points(run.eval, metric)
    blocks: list[Block] = [_table(points, metric, _files(run))]
    curves = {
        words: sorted((100 * share, value) for name, share, value in points if name.partition("-")[0] == kind)
        for kind, words in CURVES.items()
    }
    places = [100 * share for _, share, _ in points]
    curves["teacher"] = [(place, value) for n, _, value in points if n == "teacher" for place in (min(places), 100.0)]
    figure = lines("acm-curve", curves, f"{metric} against learners that ran", "% of all learners")
    figures = [figure] if figure is not None else []
    tables = [s["per_site"] for s in run.stages.values() if "mean" in s.get("per_site", {})]
    if tables:
        figures += [block for block in (_modules(tables[-1]), _histogram(tables[-1])) if block is not None]
    blocks += [Figures(figures)] if figures else []
    return [Section("Quality and computation", blocks)]


def _points(evaluation: Mapping[str, Any], metric: str) -> list[tuple[str, float, float]]:
    """Return (name, share of learners that ran, quality) of teacher, student and operating points."""
    models = {"teacher": {"executed": 1.0, **(evaluation.get("teacher") or {})}, "student": evaluation["student"]}
    models |= {**(evaluation.get("variants") or {}), **(evaluation.get("baselines") or {})}
    return [
        (name, float(figures["executed"]), float(figures[metric]))
        for name, figures in models.items()
        if isinstance(figures.get("executed"), int | float) and isinstance(figures.get(metric), int | float)
    ]


def _files(run: RunInfo) -> dict[str, dict[str, float]]:
    """Return profile -> operating point -> quality of its exported file; the profile's first graph is the file that is
    told under the profile's own name."""
    found: dict[str, dict[str, float]] = {}
    for name, figures in (run.eval.get("exports") or {}).items():
        profile, _, point = str(name).partition(".")
        graphs = (run.profile.get(profile) or {}).get("graphs") or {}
        first = sorted((str(entry.get("variant", "")) for entry in graphs.values()), key=bool)[:1]
        value = figures.get(str(run.eval.get("metric", "")))
        if isinstance(value, int | float):
            found.setdefault(profile, {})[point or (first or [""])[0] or "student"] = float(value)
    return found


def _table(points: list[tuple[str, float, float]], metric: str, files: Mapping[str, Mapping[str, float]]) -> Table:
    rows: list[list[str | Cell]] = [
        [name, f"{100 * share:.1f} %", f"{value:.4g}", *(_shown(of.get(name)) for of in files.values())]
        for name, share, value in points
    ]
    caption = (
        "What learners and gates took, as a share of the multiply-adds of all learners, on the held-out data. gated-B: "
        "gates shifted to B per cent on calibration data; static-B: the same learners, a fixed number per module, no "
        "gates; bucketed-B: every learner has room for a fixed share of the positions; truncated-B: the teacher's "
        "largest hidden units, untrained; shuffled-B: what the gates choose at B per cent, at other positions by "
        "chance."
    )
    heads = [f"{metric} of the {profile} file" for profile in files]
    return Table(["model", "learners run", metric, *heads], rows, "lrr" + "r" * len(files), caption)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _modules(found: Mapping[str, Any]) -> Figure | None:
    columns = list(found.get("mean", {}))
    rows = [
        (GATES.get(name, name.replace(".", " ")), {_short(path): float(row[path]) for path in columns})
        for name, row in sorted(found.items(), key=lambda item: item[0] in GATES)
        if not name.startswith(SHARE)
    ]
    text = "; ".join(f"{name}: " + ", ".join(f"{v:.2g}" for v in row.values()) for name, row in rows)
    caption = (
        "Learners of every module, in the order in which they run: fixed at each budget, and those that gates choose, "
        "their mean and standard deviation over positions."
    )
    said = f"Learners of {len(columns)} modules. {text}"
    return heat("acm-learners", rows, list(map(_short, columns)), said, caption) if rows else None


def _histogram(found: Mapping[str, Any]) -> Figure | None:
    """Return how many positions run each number of learners, by module."""
    columns = list(found.get("mean", {}))
    shares = {name.removeprefix(SHARE): row for name, row in found.items() if name.startswith(SHARE)}
    rows = [
        (f"{count} learners", {_short(path): float(row[path]) for path in columns})
        for count, row in sorted(shares.items(), key=lambda item: -int(item[0]))
    ]
    text = "; ".join(f"{name}: " + ", ".join(f"{100 * v:.0f} %" for v in row.values()) for name, row in rows)
    caption = "Share of positions that run each number of learners, by module, at the student's budget."
    said = f"Positions by learners. {text}"
    return heat("acm-histogram", rows, list(map(_short, columns)), said, caption) if rows else None


def _short(path: str) -> str:
    """Return the number of a module's layer and its own name, e.g. "3 mlp" of ``blocks.3.mlp``."""
    parts = path.split(".")
    return " ".join([*(part for part in parts if part.isdigit()), parts[-1]])
