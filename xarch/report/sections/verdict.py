"""The verdict at a glance."""

from __future__ import annotations

from typing import Any

from xarch.report.blocks import Block, Cell, Code, Section, Steps, Table, Text, Tile, Tiles
from xarch.report.files import RunInfo, dig, table_of
from xarch.report.outcome import Outcome, is_tiny, outcome_of
from xarch.report.wording import count, duration, number, percent, rate, size, with_unit, words


def verdict(files: RunInfo) -> Section:
    """Show state, headline figures and gates, and how to resume a run that did not finish."""
    outcome = outcome_of(files)
    blocks: list[Block] = [Text(outcome.headline, outcome.tone)]
    if outcome.reason:
        blocks.append(Text(outcome.reason, "quiet"))
    if outcome.resume and outcome.state != "done":
        blocks += [Text("To resume:"), Code(outcome.resume, "sh")]
    # The figures of a trial measure nothing; the section on quality has them, and says so.
    tiles = [*(() if is_tiny(files) else _quality(files)), *_size(files), *_speed(files), *_time(files)]
    if tiles:
        blocks.append(Tiles(tiles))
    blocks += _gates(outcome)
    if outcome.steps:
        blocks.append(Steps(outcome.steps))
    return Section("Verdict", blocks)


def _quality(files: RunInfo) -> list[Tile]:
    metric, unit = dig(files.eval, "metric"), str(dig(files.eval, "unit", default=""))
    student = dig(files.eval, "student", metric or "")
    if metric is None or not isinstance(student, int | float):
        return []
    said = [unit] if unit else []
    tiles = [Tile(f"student {words(metric)}", number(student), "; ".join(said + _rivals(files, metric)))]
    for name, value in table_of(files.eval, "gated").items():
        if name != metric and not name.endswith("bytes"):
            said = [files.unit_of(name)] if files.unit_of(name) else []
            tiles.append(Tile(words(name), number(value), "; ".join(said + _rivals(files, name))))
    return tiles[:4]


def _rivals(files: RunInfo, name: str) -> list[str]:
    """Return the same figure of the teacher and of the best baseline, for comparison."""
    given = {str(who): f[name] for who, f in table_of(files.eval, "baselines").items() if _has(f, name)}
    teacher = table_of(files.eval, "teacher")
    rivals = {"teacher": teacher[name]} if _has(teacher, name) else {}
    if given:
        own = name == dig(files.eval, "metric")
        higher = dig(files.eval, "higher_is_better") if own else dig(files.eval, "directions", name)
        best = next(iter(given)) if higher is None else (max if higher else min)(given, key=given.__getitem__)
        rivals[best] = given[best]
    return [f"{who} {number(value)}" for who, value in rivals.items()]


def _has(figures: Any, name: str) -> bool:
    return isinstance(figures, dict) and isinstance(figures.get(name), int | float)


def _size(files: RunInfo) -> list[Tile]:
    teacher = dig(files.plan, "teacher", "parameters")
    student = dig(files.student, "parameters") or dig(files.plan, "student", "parameters")
    tiles = []
    if isinstance(student, int) and isinstance(teacher, int):
        share = f"{student / teacher:.3g}× the" if student > 2 * teacher > 0 else f"{percent(student, teacher)} of the"
        tiles.append(Tile("student parameters", count(student), f"{share} teacher's"))
    kept = {n: dig(p, "bytes") for n, p in files.profile.items() if dig(files.parity, n, "passed", default=False)}
    exported = [f"{name} {size(value)}" for name, value in kept.items() if value]
    if exported:
        # The profile of the speed beside it comes first.
        first, *others = exported
        tiles.append(Tile("ONNX with weights", first.partition(" ")[2], "; ".join([first.partition(" ")[0], *others])))
    elif files.student_bytes:
        tiles.append(Tile("student on disk", size(files.student_bytes), "safetensors"))
    return tiles


def _speed(files: RunInfo) -> list[Tile]:
    for target, bench in files.bench.items():
        for name, figures in reversed(table_of(bench, "cases").items()):
            other = dig(bench, "teacher", "cases", name, "per_second")
            note = f"{target}, {name}" + (f"; teacher {count(other)}" if other else "")
            return [Tile("speed", rate(dig(figures, "per_second"), str(dig(figures, "unit", default=""))), note)]
        for name, figures in table_of(bench, "graphs").items():
            done = table_of(figures, "throughput")
            if done:
                other = dig(bench, "teacher", "graphs", name, "throughput", "per_second")
                note = f"{target}, {name}" + (f"; teacher {count(other)}" if other else "")
                return [Tile("speed", rate(done.get("per_second"), str(done.get("unit", ""))), note)]
            return [Tile("latency", f"{number(dig(figures, 'p50_ms'), 3)} ms", f"{target}, {name}, median")]
    return []


def _time(files: RunInfo) -> list[Tile]:
    total = dig(files.status, "seconds")
    stages = sum(s.get("seconds", 0) for s in files.stages.values() if isinstance(s.get("seconds"), int | float))
    if total:
        return [Tile("whole run", duration(total), "from load to bench")]
    return [Tile("stages", duration(stages), f"{len(files.stages)} done")] if stages else []


def _gates(outcome: Outcome) -> list[Block]:
    blocks: list[Block] = []
    if outcome.gates:
        rows: list[list[str | Cell]] = [
            [with_unit(g.name), number(g.value), g.limit, Cell("passed", "good") if g.passed else Cell("missed", "bad")]
            for g in outcome.gates
        ]
        blocks.append(Table(["quality gate", "measured", "limit", ""], rows, "lrrl"))
    if outcome.gate_problem:
        blocks.append(Text(outcome.gate_problem, "bad"))
    return blocks
