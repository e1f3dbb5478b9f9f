"""Report section of text: every model in every domain, and the student's gain over each control there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch.report import Block, Cell, RunInfo, Section, Table, Text
from xarch_text.effort import shaded
from xarch_text.metric import DOMAINS

COLUMNS = ("perplexity", "perplexity_ratio", "kl", "top1_agreement")
HEAD = ("perplexity", "ratio", "KL, nats/token", "top-1 agreement", "student's KL / its")


def sections(run: RunInfo) -> list[Section]:
    """Return a table for each domain, unless the run evaluated a single one; and text with what ran where, of a student
    that chooses."""
    models = dict(_models(run.eval))
    found = [d for d in DOMAINS if any(f"perplexity.{d}" in figures for figures in models.values())]
    blocks: list[Block] = [Text("The same held-out rows, divided by the files that they come from.")]
    blocks += [_table(domain, models) for domain in found]
    where = shaded([entry for entry in run.eval.get("samples", []) if isinstance(entry, dict)])
    made = [Section("Quality by domain", blocks)] if len(found) > 1 else []
    return made if where is None else [*made, where]


def _models(told: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    sides = [(side, told.get(side)) for side in ("teacher", "student")]
    beside, points = (value if isinstance(value := told.get(key), dict) else {} for key in ("baselines", "variants"))
    every = [*sides, *beside.items(), *((f"student, {name}", figures) for name, figures in points.items())]
    return [(str(name), figures) for name, figures in every if isinstance(figures, dict)]


def _table(domain: str, models: Mapping[str, Mapping[str, Any]]) -> Table:
    own = models.get("student", {}).get(f"kl.{domain}")
    rows: list[list[str | Cell]] = []
    for name, figures in models.items():
        values = [figures.get(f"{column}.{domain}") for column in COLUMNS]
        words = [_said(column, value) for column, value in zip(COLUMNS, values, strict=True)]
        other = values[COLUMNS.index("kl")]
        known = isinstance(own, int | float) and isinstance(other, int | float) and other > 0
        gain = f"{own / other:.2f}×" if known and name != "student" and own is not None and other else ""
        rows.append([name, *words, gain])
    tokens = models.get("student", {}).get(f"tokens.{domain}")
    return Table([f"{domain}, {tokens:.0f} tokens" if tokens else domain, *HEAD], rows, "lrrrrr")


def _said(column: str, value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    if column == "top1_agreement":
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if column == "perplexity" else f"{value:.3f}"
