"""Build report.html and report.md of a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xarch.files.run_dir import CARD, RunDir
from xarch.report.blocks import Section, Text
from xarch.report.card import model_card
from xarch.report.extension import plugin_sections
from xarch.report.files import RunInfo, dig, read_run, table_of
from xarch.report.outcome import outcome_of
from xarch.report.render_html import to_html
from xarch.report.render_markdown import to_markdown
from xarch.report.sections.conversion import conversion, decisions, tensors
from xarch.report.sections.exports import export_files, latency, parity
from xarch.report.sections.over_time import over_time
from xarch.report.sections.per_site import per_site
from xarch.report.sections.quality import quality, samples
from xarch.report.sections.run import data, environment, reproduce, timing
from xarch.report.sections.training import training
from xarch.report.sections.verdict import verdict

Sections = tuple[tuple[str, Callable[[RunInfo], Section | None]], ...]
RESULT: Sections = (
    ("Verdict", verdict),
    ("What was converted", conversion),
    ("Decisions", decisions),
    ("Quality", quality),
    ("Quality over time", over_time),
    ("Samples", samples),
)
"""The results, shown first; the sections of plugins come next and show outputs of the student."""
DETAILS: Sections = (
    ("Training", training),
    ("Per site", per_site),
    ("Parity", parity),
    ("Export", export_files),
    ("Latency", latency),
    ("Tensors", tensors),
    ("Data", data),
    ("Time", timing),
    ("Environment", environment),
    ("Reproduce", reproduce),
)

_BADGE = {"done": "done", "failed": "failed", "interrupted": "interrupted", "running": "not finished"}


def build_report(
    run: RunDir, status: Mapping[str, Any] | None = None, wording: Mapping[str, Any] | None = None
) -> None:
    """Write report.html, report.md and, next to a saved student, its model card README.md.

    Args:
        status: shown instead of status.json, for a run that will be done when its report is written.
        wording: used instead of the plan's ``report`` settings.

    Reads the files of the run folder only. If files are missing or damaged, their section is left out and a note is
    added. The report of a failed run states the cause and how to resume.
    """
    files = read_run(run)
    files.status = files.status if status is None else dict(status)
    if wording is not None:
        files.plan["config"] = {**table_of(files.plan, "config"), "report": dict(wording)}
    sections = [*_made(RESULT, files), *plugin_sections(files, _renders), *_made(DETAILS, files)]
    card = _card(run, files)
    if files.notes:
        sections.append(Section("Notes", [Text(note, "warn") for note in files.notes]))
    title = files.title
    subtitle = _subtitle(files)
    outcome = outcome_of(files)
    page = to_html(title, subtitle, (_BADGE.get(outcome.state, outcome.state), outcome.tone), sections)
    run.write_text(run.report_html, page)
    run.write_text(run.report_md, to_markdown(title, subtitle, sections))
    if card is not None:
        run.write_text(run.student / CARD, card)


def _renders(section: Section) -> None:
    to_html("", "", ("", ""), [section])
    to_markdown("", "", [section])


def _subtitle(files: RunInfo) -> str:
    teacher, target = dig(files.plan, "teacher", "ref", default="no teacher"), dig(files.plan, "student", "title")
    parts = [f"{teacher} → {target}"] if target else []
    parts += [f"xarch {dig(files.run, 'xarch')}"] if dig(files.run, "xarch") else []
    parts += [str(dig(files.run, "started"))[:16].replace("T", " ")] if dig(files.run, "started") else []
    return " · ".join(parts) or "xarch run"


_UNEXPECTED = (TypeError, ValueError, KeyError, IndexError, AttributeError)


def _card(run: RunDir, files: RunInfo) -> str | None:
    if not files.student:
        return None
    try:
        return model_card(files)
    except _UNEXPECTED as e:
        files.notes.append(f"the model card could not be written: {type(e).__name__}: {e}")
        return None


def _made(sections: Sections, files: RunInfo) -> list[Section]:
    return [s for s in (_guarded(name, make, files) for name, make in sections) if s is not None]


def _guarded(name: str, make: Callable[[RunInfo], Section | None], files: RunInfo) -> Section | None:
    """Build one section; unexpected file contents drop only this section."""
    try:
        return make(files)
    except _UNEXPECTED as e:
        files.notes.append(f"section {name} could not be built from the run's files: {type(e).__name__}: {e}")
        return None
