"""Data, timing, environment and the command that reproduces a run."""

from __future__ import annotations

from typing import Any

from xarch.report.blocks import Block, Cell, Code, Details, Section, Table, Text, Tone
from xarch.report.files import RunInfo, dig, rows_of, table_of
from xarch.report.wording import duration, number, percent, rate, size, words


def data(files: RunInfo) -> Section | None:
    """Show what the stages read from the data and what they skipped."""
    counted = {folder: _counters(summary) for folder, summary in files.stages.items()}
    counted = {folder: counters for folder, counters in counted.items() if counters}
    planned = table_of(files.plan, "data")
    blocks: list[Block] = []
    if counted:
        names = list(dict.fromkeys(name for counters in counted.values() for name in counters))
        names.sort(key=lambda n: n.startswith("skipped"))
        rows = [[words(n), *(number(c.get(n, 0)) for c in counted.values())] for n in names]
        blocks.append(Table(["counter", *counted], rows, "l" + "r" * len(counted)))
        skipped = sum(v for c in counted.values() for n, v in c.items() if n.startswith("skipped"))
        seen = skipped + sum(c.get("read", 0) for c in counted.values())
        if seen:
            text = f"Skipped {number(skipped)} of {number(seen)} ({percent(skipped, seen)})."
            blocks.append(Text(text, "warn" if skipped else "quiet"))
    facts = [[words(str(k)), str(v)] for k, v in table_of(planned, "size").items()]
    if planned.get("digest"):
        facts.append(["digest", str(planned["digest"])[:16]])
    if facts:
        blocks.append(Details(f"{planned.get('ref', 'data')}", [Table(["fact", ""], facts)]))
    return Section("Data", blocks) if blocks else None


def _counters(summary: dict[str, Any]) -> dict[str, int]:
    found = table_of(summary, "data").items()
    return {k: v for k, v in found if isinstance(v, int) and not isinstance(v, bool)}


def timing(files: RunInfo) -> Section | None:
    """Compare the time of every stage with the plan."""
    planned = {str(s.get("folder")): s for s in rows_of(files.plan, "stages")}
    rows: list[list[str | Cell]] = []
    unit = str(dig(files.plan, "unit", default="unit"))
    for folder, summary in files.stages.items():
        took, units = summary.get("seconds"), summary.get("units")
        trained = dig(summary, "training", "seconds", default=took)
        speed = "–"
        if isinstance(trained, int | float) and isinstance(units, int) and trained > 0:
            speed = rate(units / trained, unit)
        rows.append([folder, duration(dig(planned, folder, "seconds")), duration(took), speed])
    if not rows:
        return None
    for target, profile in files.profile.items():
        for part, seconds in table_of(profile, "seconds").items():
            rows.append([f"export {target}: {part}", "", duration(seconds), ""])
    return Section("Time", [Table(["part", "planned", "actual", "speed"], rows, "lrrr")])


_TONES: dict[str, Tone] = {"ok": "good", "not checked": "warn"}


def environment(files: RunInfo) -> Section | None:
    """Show versions, machine, seeds, plugins and the checks of the plan."""
    run = files.run
    rows: list[list[str | Cell]] = []
    for key in ("xarch", "python", "platform", "machine", "device", "threads", "processes", "seed", "git", "started"):
        if run.get(key) is not None:
            rows.append([key, str(run[key])])
    rows += [[str(name), str(version)] for name, version in table_of(run, "versions").items()]
    rows += [[f"plugin {name}", str(v) or "–"] for name, v in table_of(run, "plugins").items()]
    blocks: list[Block] = [Table(["", ""], rows)] if rows else []
    checks: list[list[str | Cell]] = [
        [str(c.get("name")), str(c.get("detail")), Cell(str(c.get("state")), _TONES.get(str(c.get("state")), "bad"))]
        for c in rows_of(files.plan, "checks")
    ]
    if checks:
        blocks.append(Details("plan checks", [Table(["check", "detail", ""], checks)]))
    estimates = table_of(files.plan, "estimates")
    if estimates:
        text = f"Planned: {duration(estimates.get('seconds'))}, {size(estimates.get('peak_bytes'))} peak memory, "
        blocks.append(Text(f"{text}{size(estimates.get('disk_bytes'))} on disk.", "quiet"))
    return Section("Environment", blocks) if blocks else None


def reproduce(files: RunInfo) -> Section | None:
    """Show the command and the configuration that reproduce this run."""
    command = str(dig(files.plan, "command", default=""))
    blocks: list[Block] = [Code(command, "sh")] if command else []
    if files.config_text:
        blocks.append(Text("Or, with the configuration in this folder:"))
        blocks.append(Code("xarch convert config.yaml --out NEW_FOLDER", "sh"))
        blocks.append(Details("config.yaml", [Code(files.config_text, "yaml")]))
    origins = table_of(files.plan, "provenance")
    if origins:
        rows = [[str(k), str(v)] for k, v in origins.items()]
        blocks.append(Details("origin of settings", [Table(["setting", "origin"], rows)]))
    return Section("Reproduce", blocks) if blocks else None
