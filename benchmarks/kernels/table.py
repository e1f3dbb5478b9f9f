"""The results as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.kernels.bars import Bar
from benchmarks.kernels.times import busy, clock
from benchmarks.store import Result


def show(console: Console, result: Result, bars: list[Bar]) -> None:
    """One table per operation and shape, the machine's limits, and the promises."""
    rates, machine = result.facts["limits"], result.header["machine"]
    console.print(f"{machine['device']}, {machine['threads']} threads")
    for name, value in rates.items():
        unit = "GB/s" if "bytes" in name else "Gflop/s" if "flops" in name else "G exp/s"
        console.print(f"  {name.removesuffix('_per_s'):18s} {value / 1e9:10.1f} {unit}")
    keys = dict.fromkeys((p["op"], p["shape"]) for p in result.points)
    for op, shape in keys:
        console.print(points(op, shape, [p for p in result.points if (p["op"], p["shape"]) == (op, shape)]))
    if bars:
        console.print(promises(bars))


def points(op: str, shape: str, found: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{op}, {shape}", title_justify="left", header_style="bold")
    for head in ("tokens", "contender"):
        table.add_column(head, justify="right" if head == "tokens" else "left", no_wrap=head == "tokens")
    for head in ("fwd ms", "both ms", "of ours", "fwd MiB", "both MiB", "x floor", "bound", "error"):
        table.add_column(head, justify="right", no_wrap=True)
    for length in dict.fromkeys(p["length"] for p in found):
        rows = [p for p in found if p["length"] == length]
        ours = next((_get(p, "forward_backward", clock(p)) for p in rows if p["default"]), None)
        for i, point in enumerate(rows):
            name = f"[bold]{point['contender']}[/bold]" if point["ours"] else point["contender"]
            note = "" if point["status"] == "done" else f" ({point['status']})"
            table.add_row(
                str(length) if i == 0 else "",
                name + note,
                _ms(point, "forward"),
                _ms(point, "forward_backward"),
                _of(point, ours),
                _plain(_get(point, "forward", "peak_mib"), ".0f"),
                _plain(_get(point, "forward_backward", "peak_mib"), ".0f"),
                _plain(_get(point, "forward_backward", "times_floor"), ".1f"),
                _get(point, "forward_backward", "bound") or "",
                _error(point),
                end_section=i == len(rows) - 1,
            )
    return table


def promises(bars: list[Bar]) -> Table:
    table = Table(title="bars", title_justify="left", header_style="bold")
    for head in ("what", "against", "wanted", "measured", "by the clock", "met"):
        table.add_column(head, overflow="fold")
    for bar in bars:
        sign = "<=" if bar.at_most else ">="
        met = {None: "not measured", True: "yes", False: "[red]no[/red]"}[bar.met]
        measured = _plain(bar.value, "g")
        if bar.at_least is not None:
            measured = f">= {bar.at_least:g} (did not finish in {bar.ended_after_s:.0f} s)"
        table.add_row(bar.what, bar.against, f"{sign} {bar.wanted:g}", measured, _plain(bar.by_clock, "g"), met)
    return table


def _get(point: dict[str, Any], name: str, key: str) -> Any:
    return point.get(name, {}).get(key)


def _ms(point: dict[str, Any], name: str) -> str:
    """Milliseconds of a pass, of the CPU on one; > where it was ended by then, * where the machine was busy."""
    seconds, ended = _get(point, name, clock(point)), _get(point, name, "at_least")
    if ended is not None:
        return f"> {ended[clock(point)] * 1e3:.0f}"
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.2f}" + ("*" if point["device"] == "cpu" and busy(point[name]) else "")


def _of(point: dict[str, Any], ours: float | None) -> str:
    """How many times as long as our own default both passes take."""
    key = clock(point)
    seconds, ended = _get(point, "forward_backward", key), _get(point, "forward_backward", "at_least")
    if ours is None or (seconds is None and ended is None):
        return ""
    return f"> {ended[key] / ours:.0f}" if ended is not None else f"{seconds / ours:.2f}"


def _plain(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _error(point: dict[str, Any]) -> str:
    gates = [point[name]["gate"] for name in ("forward", "forward_backward") if _get(point, name, "gate")]
    if not gates:
        return ""
    worst = max((e if e == e else float("inf") for g in gates for e in g["errors"].values()), default=0.0)
    return f"{worst:.0e}" if all(g["passed"] for g in gates) else f"[red]{worst:.0e} wrong[/red]"
