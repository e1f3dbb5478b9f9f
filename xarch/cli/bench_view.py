"""``xarch bench`` for people: one table a profile, with the teacher in the same row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xarch.numbers import count

if TYPE_CHECKING:
    from rich.console import Console

NONE = "–"


def show_bench(document: Mapping[str, Any], console: Console) -> None:
    """Print the figures of a run's exports, by profile, or those of one file."""
    benches = document.items() if "graphs" not in document and "p50_ms" not in document else [("", document)]
    for profile, bench in benches:
        _show(str(profile), bench, console)


def _show(profile: str, bench: Mapping[str, Any], console: Console) -> None:
    from rich.text import Text

    from xarch.cli.tables import table

    teacher = bench.get("teacher", {})
    machine = bench.get("machine", {})
    threads = bench.get("threads", 1)
    told = [bench.get("dtype", ""), f"{threads} thread{'s' if threads != 1 else ''}", machine.get("processor", "")]
    console.print(Text.assemble((profile, "bold"), "  " if profile else "", ", ".join(filter(None, map(str, told)))))
    if bench.get("busy"):
        console.print(f"{bench['busy']}: wall times are too long, CPU times stand", style="yellow", markup=False)
    if teacher.get("absent"):
        console.print(f"the teacher has no graphs here: {teacher['absent']}", style="dim", markup=False)
    if "p50_ms" in bench:
        bench = {**bench, "graphs": {"model": bench}}
    rows = []
    for kind in ("graphs", "cases"):
        for name, own in bench.get(kind, {}).items():
            rows.append(_row(name, own, teacher.get(kind, {}).get(name)))
    compared = any(row[-1] != NONE for row in rows)
    columns = ["measured", "wall ms", "CPU ms", "speed"]
    if compared:
        columns += ["teacher CPU ms", "CPU ratio"]
    console.print(table(columns, [row[: len(columns)] for row in rows], right=columns[1:], whole=columns[1:]))
    if compared:
        precision = teacher.get("dtype", "")
        console.print(f"CPU ratio: the teacher's CPU time ({precision}) over the student's", style="dim", markup=False)


def _row(name: str, own: Mapping[str, Any], rival: Mapping[str, Any] | None) -> list[str]:
    done = own.get("throughput") or own
    speed = f"{count(done['per_second'])} {done['unit'].removesuffix('s')}s/s" if done.get("per_second") else NONE
    amount = str(own.get("amount", 1))
    if amount != "1" and amount not in name:
        name = f"{name}, {amount} {own['unit']}s"
    row = [name, f"{own['p50_ms']:.2f}", f"{own['cpu_ms']:.2f}", speed]
    if rival is None:
        return [*row, NONE, NONE]
    return [*row, f"{rival['cpu_ms']:.2f}", f"{rival['cpu_ms'] / max(own['cpu_ms'], 1e-9):.2f}×"]
