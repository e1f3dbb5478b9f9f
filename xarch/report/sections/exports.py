"""Exported graphs: parity, files and speed."""

from __future__ import annotations

from typing import Any

from xarch.report.blocks import Block, Cell, Details, Section, Table, Text
from xarch.report.files import RunInfo, dig, rows_of, table_of
from xarch.report.wording import duration, figure, number, plural, rate, size, words

PARITY_FIGURES = ("max_abs", "rel_l2", "cosine")


def parity(files: RunInfo) -> Section | None:
    """Compare the student in torch with its exported graphs; show the worst case of each graph."""
    rows: list[list[str | Cell]] = []
    measured: list[list[str | Cell]] = []
    blocks: list[Block] = []
    for target, found in files.parity.items():
        limits = table_of(found, "limits")
        for graph, result in table_of(found, "graphs").items():
            cases = rows_of(result, "cases")
            failed = any(dig(f, "graph") == graph for f in rows_of(found, "failures"))
            worst = {name: _worst(cases, name) for name in PARITY_FIGURES}
            share = dig(result, "top1_agreement")
            mark = Cell("rejected", "bad") if failed or graph in files.rejected.get(target, []) else Cell("ok", "good")
            rows.append(
                [
                    mark,
                    target,
                    graph,
                    number(len(cases)),
                    number(worst["max_abs"], 3),
                    f"{number(worst['rel_l2'], 3)} (≤ {_limit(limits.get('rel_l2'))})",
                    number(worst["cosine"], 7),
                    number(share, 4),
                ]
            )
            measured += [_measured(target, graph, name, entry) for name, entry in table_of(result, "measures").items()]
        for failure in rows_of(found, "failures"):
            blocks.append(Text(f"{target}: {_failure(failure)}", "bad"))
    if not rows:
        return None
    head = ["", "profile", "graph", "cases", "max abs", "rel L2 (limit)", "cosine", "top-1"]
    note = "Worst of all cases: held-out inputs of several sizes, with graph optimisation on and off."
    tables: list[Block] = [Table(head, rows, "lllrrrrr", note)]
    if measured:
        note = "Figures computed over a whole case; the worst case of each graph."
        tables.append(Table(["", "profile", "graph", "measure", "value", "limit"], measured, "llllrl", note))
    return Section("Parity", [*tables, *blocks])


def _measured(target: str, graph: str, name: str, entry: Any) -> list[str | Cell]:
    value, unit = dig(entry, "value"), str(dig(entry, "unit", default=""))
    low, high = dig(entry, "minimum"), dig(entry, "maximum")
    kept = isinstance(value, int | float) and (low is None or value >= low) and (high is None or value <= high)
    bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", low), ("≤", high)) if isinstance(bound, int | float)]
    mark = Cell("ok", "good") if kept else Cell("missed", "bad")
    shown = f"{number(value, 4)} {unit}".rstrip()
    return [mark if bounds else "", target, graph, words(name), shown, ", ".join(bounds) or "–"]


def _limit(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "–"


def _worst(cases: list[Any], name: str) -> float | None:
    values = [
        float(figures[name])
        for case in cases
        for figures in table_of(case, "outputs").values()
        if isinstance(figures, dict) and isinstance(figures.get(name), int | float)
    ]
    if not values:
        return None
    return min(values) if name == "cosine" else max(values)


def _failure(failure: Any) -> str:
    if not isinstance(failure, dict):
        return str(failure)
    parts = [f"{k} {failure[k]}" for k in ("graph", "case", "output", "figure") if failure.get(k)]
    return f"{', '.join(parts)} is {failure.get('seen')}, limit {failure.get('limit')}"


def export_files(files: RunInfo) -> Section | None:
    """Show files, versions, operators and sizes of every profile."""
    rows: list[list[str | Cell]] = []
    operators: list[list[str | Cell]] = []
    notes = []
    for target, profile in files.profile.items():
        for graph, facts in table_of(profile, "graphs").items():
            ops = table_of(facts, "ops")
            nodes = sum(v for v in ops.values() if isinstance(v, int)) if isinstance(ops, dict) else None
            name = f"{graph}.onnx" + (".rejected" if graph in files.rejected.get(target, []) else "")
            versions = f"opset {dig(facts, 'opset', default='–')}, IR {dig(facts, 'ir', default='–')}"
            sizes = [size(dig(facts, "graph_bytes")), size(dig(facts, "weight_bytes"))]
            rows.append([target, name, versions, number(nodes), *sizes])
            if isinstance(ops, dict):
                operators += [[target, graph, str(op), number(n)] for op, n in sorted(ops.items())]
        shared, total = dig(profile, "weights", "shared_bytes"), dig(profile, "bytes")
        facts = table_of(profile, "profile")
        if total:
            shape = "static shapes" if facts.get("static") else "dynamic shapes where the graph allows them"
            note = f"{target}: {size(total)} on disk, {facts.get('provider', '')}, {facts.get('dtype', '')}, {shape}"
            notes.append(Text(note + (f"; sharing weights saves {size(shared)}." if shared else "."), "quiet"))
    if not rows:
        return None
    head = ["profile", "file", "versions", "nodes", "graph", "weights read"]
    table = Table(head, rows, "lllrrr")
    more = Details("operators", [Table(["profile", "graph", "operator", "count"], operators, "lllr")])
    return Section("Export", [table, *notes, more])


def latency(files: RunInfo) -> Section | None:
    """Show the measured speed of the exports."""
    calls: list[list[str | Cell]] = []
    speeds: list[list[str | Cell]] = []
    procedures: list[list[str | Cell]] = []
    notes: list[Block] = []
    for target, bench in files.bench.items():
        for graph, figures in table_of(bench, "graphs").items():
            columns = [number(dig(figures, f"{p}_ms"), 3) for p in ("p50", "p90", "p99")]
            placed = table_of(figures, "nodes_per_provider")
            where = ", ".join(f"{n} {p.removesuffix('ExecutionProvider')}" for p, n in placed.items())
            load = duration(dig(figures, "load_seconds"))
            calls.append([target, graph, *columns, load, size(dig(figures, "weight_bytes")), where or "–"])
            if "throughput" in figures:
                speeds.append(_speeds(target, graph, figures, bench))
        for name, figures in table_of(bench, "cases").items():
            procedures.append(_procedure(target, name, figures, bench))
        notes += _machine(target, bench)
    blocks: list[Block] = []
    if calls:
        head = ["profile", "graph", "p50 ms", "p90 ms", "p99 ms", "load", "weights", "nodes on"]
        blocks.append(Table(head, calls, "llrrrrrl"))
    if speeds:
        head = ["profile", "graph", "student", "teacher ONNX", "speed-up"]
        note = "Units per second at the median latency; student and teacher measured in the same run."
        blocks.append(Table(head, speeds, "llrrr", note))
    if procedures:
        head = ["profile", "procedure", "p50 ms", "p90 ms", "student", "teacher ONNX", "speed-up", "details"]
        blocks.append(Table(head, procedures, "llrrrrrl", "A procedure makes several calls; speed is at the median."))
    return Section("Latency", [*blocks, *notes]) if blocks else None


def _speeds(target: str, graph: str, figures: dict[str, Any], bench: dict[str, Any]) -> list[str | Cell]:
    own, other = table_of(figures, "throughput"), table_of(bench, "teacher", "graphs", graph, "throughput")
    ratio = dig(bench, "teacher", "speed_up", graph)
    absent = dig(bench, "teacher", "absent")
    mine, theirs = (
        _with_precision(rate(r.get("per_second"), str(r.get("unit", ""))), found)
        for r, found in ((own, bench), (other, table_of(bench, "teacher")))
    )
    times = f"{number(ratio, 3)}×" if ratio is not None else "–"
    return [target, graph, mine, f"none: {absent}" if absent else theirs, times]


def _procedure(target: str, name: str, figures: dict[str, Any], bench: dict[str, Any]) -> list[str | Cell]:
    unit = str(dig(figures, "unit", default=""))
    own, other = (
        _with_precision(rate(dig(data, "per_second"), unit), found)
        for data, found in ((figures, bench), (dig(bench, "teacher", "cases", name), table_of(bench, "teacher")))
    )
    ratio = dig(bench, "teacher", "speed_up", name)
    more = ", ".join(f"{words(str(k))} {_whole(str(k), v)}" for k, v in table_of(figures, "figures").items())
    columns = [number(dig(figures, f"{p}_ms"), 3) for p in ("p50", "p90")]
    return [target, name, *columns, own, other, f"{number(ratio, 3)}×" if ratio is not None else "–", more or "–"]


def _with_precision(speed: str, bench: dict[str, Any]) -> str:
    """Return a speed with the precision of the weights, where both are known."""
    return f"{speed}, {bench['dtype']}" if speed != "–" and bench.get("dtype") else speed


def _whole(name: str, value: Any) -> str:
    """A figure of a procedure; counts are stored as floats and shown without decimals."""
    return figure(name, int(value) if isinstance(value, float) and value.is_integer() else value)


def _machine(target: str, bench: dict[str, Any]) -> list[Block]:
    machine = table_of(bench, "machine")
    parts = [str(machine["processor"])] if machine.get("processor") else []
    parts += [plural(bench["threads"], "thread")] if bench.get("threads") else []
    parts += [f"load average {number(bench['load_average'], 3)}"] if bench.get("load_average") is not None else []
    busy = f" {bench['busy'].capitalize()}; only CPU time is comparable." if bench.get("busy") else ""
    return [Text(f"{target} measured on {', '.join(parts)}.{busy}", "quiet")] if parts else []
