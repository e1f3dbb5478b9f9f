"""The verdict at one glance."""

from __future__ import annotations

from xarch.report.blocks import Block, Cell, Code, Section, Steps, Table, Text, Tile, Tiles, Tone
from xarch.report.files import RunFiles, dig, table_of
from xarch.report.outcome import Outcome, is_tiny, outcome_of
from xarch.report.wording import UNITS, count, duration, number, percent, size, with_unit, words


def verdict(files: RunFiles) -> Section:
    """State, headline figures, gates, and the way on if the run did not end well."""
    outcome = outcome_of(files)
    blocks: list[Block] = [Text(outcome.headline, outcome.tone)]
    if outcome.reason:
        blocks.append(Text(outcome.reason, "quiet"))
    if outcome.resume and outcome.state != "done":
        blocks += [Text("To go on:"), Code(outcome.resume, "sh")]
    tiles = [*_quality(files), *_size(files), *_speed(files), *_time(files)]
    if tiles:
        blocks.append(Tiles(tiles))
    blocks += _gates(outcome)
    if outcome.steps:
        blocks.append(Steps(outcome.steps))
    return Section("Verdict", blocks)


def _quality(files: RunFiles) -> list[Tile]:
    metric, unit = dig(files.eval, "metric"), str(dig(files.eval, "unit", default=""))
    student, teacher = dig(files.eval, "student", metric or ""), dig(files.eval, "teacher", metric or "")
    if metric is None or not isinstance(student, int | float):
        return []
    tone: Tone = "warn" if is_tiny(files) else ""
    note = f"{unit}; teacher {number(teacher)}".lstrip("; ") if teacher is not None else unit
    tiles = [Tile(f"student {words(metric)}", number(student), note, tone)]
    for name, value in table_of(files.eval, "gated").items():
        if name != metric:
            tiles.append(Tile(words(name), number(value), UNITS.get(name, ""), tone))
    return tiles[:4]


def _size(files: RunFiles) -> list[Tile]:
    teacher = dig(files.plan, "teacher", "parameters")
    student = dig(files.student, "parameters") or dig(files.plan, "student", "parameters")
    tiles = []
    if isinstance(student, int) and isinstance(teacher, int):
        tiles.append(Tile("student parameters", count(student), f"{percent(student, teacher)} of the teacher's"))
    kept = [p for target, p in files.profile.items() if dig(files.parity, target, "passed", default=False)]
    exported = [dig(p, "bytes") for p in kept if dig(p, "bytes")]
    if exported:
        tiles.append(Tile("export on disk", size(min(exported)), "ONNX with weights"))
    elif files.student_bytes:
        tiles.append(Tile("student on disk", size(files.student_bytes), "safetensors"))
    return tiles


def _speed(files: RunFiles) -> list[Tile]:
    for target, bench in files.bench.items():
        decode = table_of(bench, "language", "decode")
        if decode:
            context, figures = next(iter(decode.items()))
            speed = number(dig(figures, "tokens_per_second"), 3)
            return [Tile("decode speed", f"{speed} tok/s", f"{target}, after {context} tokens")]
        for name, figures in table_of(bench, "graphs").items():
            rate = table_of(figures, "throughput")
            if rate:
                other = dig(bench, "teacher", "graphs", name, "throughput", "per_second")
                note = f"{target}, {name}" + (f"; teacher {count(other)}" if other else "")
                return [Tile("speed", f"{count(rate.get('per_second'))} {rate.get('unit')}/s", note)]
            return [Tile("latency", f"{number(dig(figures, 'p50_ms'), 3)} ms", f"{target}, {name}, median")]
    return []


def _time(files: RunFiles) -> list[Tile]:
    total = dig(files.status, "seconds")
    stages = sum(s.get("seconds", 0) for s in files.stages.values() if isinstance(s.get("seconds"), int | float))
    if total:
        return [Tile("whole run", duration(total), "from load to bench")]
    return [Tile("stages", duration(stages), f"{len(files.stages)} done")] if stages else []


def _gates(outcome: Outcome) -> list[Block]:
    blocks: list[Block] = []
    if outcome.gates:
        rows: list[list[str | Cell]] = [
            [with_unit(g.name), number(g.value), g.limit, Cell("kept", "good") if g.passed else Cell("missed", "bad")]
            for g in outcome.gates
        ]
        blocks.append(Table(["quality gate", "measured", "limit", ""], rows, "lrrl"))
    if outcome.gate_problem:
        blocks.append(Text(outcome.gate_problem, "bad"))
    return blocks
