"""``xarch list``: list everything the plugins register."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from xarch.cli.pairs import joined, pairs
from xarch.cli.session import Session, define
from xarch.registry.declare import Spec
from xarch.registry.loader import get_registry
from xarch.registry.registry import PLURAL, Registry

if TYPE_CHECKING:
    from rich.console import Console

KIND_OF = {plural: kind for kind, plural in PLURAL.items()}
CHOICES = ["pairs", *KIND_OF, "plugins"]
COLUMNS = {"methods": ("title", "paper", "families", "control"), "objectives": ("compares", "units", "paper")}
"""Columns of a kind in addition to name, summary, plugin and status."""
WIDE = 120
"""Terminal width from which these are columns; on narrower terminals they are lines of the description."""


@define("list")
@click.argument("what", type=click.Choice(CHOICES), required=False)
@click.option("--papers", is_flag=True, help="Group the entries by the paper that they come from.")
def command(session: Session, what: str | None, papers: bool) -> None:
    """List the registered entries of one kind, or of every kind except plugins."""
    registry = get_registry()
    if papers:
        kinds = [what] if what else ["methods", "objectives"]
        found = papers_of({kind: _rows(registry, kind) for kind in kinds})
        session.emit({"papers": found, "count": len(found)}, lambda console: _show_papers(console, found))
        return
    shown = [what] if what else [c for c in CHOICES if c != "plugins"]
    document = {name: _rows(registry, name) for name in shown}
    broken = [p for p in registry.plugins() if not p.loaded and p.state != "disabled"]
    document["not_loaded"] = [
        {"plugin": p.name, "distribution": p.distribution, "version": p.version, "state": p.state, "detail": p.detail}
        for p in broken
    ]
    session.emit(document, lambda console: _show(console, document))


def papers_of(rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the papers of rows by kind: ``{"paper": ..., KIND: [names]}``, in order of their names."""
    found: dict[str, dict[str, Any]] = {}
    for kind, entries in rows.items():
        for row in entries:
            if row.get("paper"):
                found.setdefault(row["paper"], {}).setdefault(kind, []).append(row["name"])
    return [{"paper": paper, **{kind: sorted(set(n)) for kind, n in found[paper].items()}} for paper in sorted(found)]


def _show_papers(console: Console, papers: list[dict[str, Any]]) -> None:
    from xarch.cli.tables import table

    kinds = [kind for kind in KIND_OF if any(kind in row for row in papers)]
    cells = [[row["paper"], *(", ".join(row.get(kind, [])) for kind in kinds)] for row in papers]
    console.print(table(["paper", *kinds], cells, whole=("paper",)))
    console.print(f"{len(papers)} papers")


def _rows(registry: Registry, what: str) -> list[dict[str, Any]]:
    if what == "pairs":
        return [pair.to_json() for pair in pairs(registry)]
    if what == "plugins":
        from xarch.cli.plugins import rows

        return rows(registry)
    return [_row(registry, spec) for spec in registry.specs(KIND_OF[what])]


def _row(registry: Registry, spec: Spec) -> dict[str, Any]:
    state, detail = registry.status(spec)
    families = {"accepts": list(spec.accepts)} if spec.accepts else {}
    produces = {"produces": spec.produces} if spec.produces else {}
    row = {
        "name": f"zoo:{spec.name}" if spec.kind == "teacher" else spec.name,
        "summary": spec.summary,
        **families,
        **produces,
        **({"facts": spec.data} if spec.kind == "teacher" else spec.data),
        "plugin": spec.plugin,
        "status": "ready" if state == "ok" else state,
        "detail": detail,
    }
    return _with_head(registry, spec, row) if spec.kind == "method" and state == "ok" else row


def _with_head(registry: Registry, spec: Spec, row: dict[str, Any]) -> dict[str, Any]:
    """Add the head of the method's file to its row."""
    from xarch.config.method import read_method
    from xarch.errors import XarchError

    try:
        head = read_method(registry.resolve(spec), spec.qualified)
    except XarchError as e:
        return {**row, "status": "failed", "detail": e.what}
    told = {"title": head.title, "paper": head.paper, "families": head.families, "control": head.control}
    return {**row, **told, "summary": head.summary or spec.summary}


def _show(console: Console, document: dict[str, list[dict[str, Any]]]) -> None:
    from xarch.cli.tables import table

    for what, rows in document.items():
        if what == "not_loaded" or (not rows and len(document) > 2):
            continue
        console.print(what, style="bold")
        if not rows:
            console.print("  none")
            continue
        narrow = console.width < WIDE
        rows = joined(rows) if what == "pairs" else rows
        whole = ("name", "plugin", "state")
        console.print(table(_columns(what, narrow), [_cells(what, row, narrow) for row in rows], whole=whole))
    for row in document["not_loaded"]:
        console.print("not loaded", style="red", end="")
        console.print(f"  {row['plugin']}: {row['state']}: {row['detail']}")


def _columns(what: str, narrow: bool) -> list[str]:
    if what == "pairs":
        return ["source", "target", "stages", "export", "status", "from"]
    if what == "plugins":
        return ["plugin", "state", "from", "declares", "detail"]
    return ["name", *(() if narrow else COLUMNS.get(what, ())), "description", "plugin", "status"]


def _cells(what: str, row: dict[str, Any], narrow: bool) -> list[str]:
    if what == "pairs":
        stages, exports = " > ".join(row["stages"]) or "-", ", ".join(row["exports"]) or "-"
        return [row["source"], row["target"], stages, exports, _status(row), row["owner"]]
    if what == "plugins":
        from xarch.cli.plugins import cells

        return cells(row)
    more = {column: _cell(row.get(column)) for column in COLUMNS.get(what, ())}
    description = " ".join(filter(None, [row["summary"], _arrow(row)]))
    if narrow:
        rest = "; ".join(f"{key}: {text}" for key, text in more.items() if text != "-")
        description = "\n".join(filter(None, [description, rest]))
    return [row["name"], *(() if narrow else more.values()), description, row["plugin"], _status(row)]


def _cell(value: Any) -> str:
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value or "")) or "-"


def _status(row: dict[str, Any]) -> str:
    return row["status"] if not row["detail"] else f"{row['status']}: {row['detail']}"


def _arrow(row: dict[str, Any]) -> str:
    """Return ``(decoder -> decoder)`` for targets, ``(-> decoder)`` for sources."""
    accepts, produces = ", ".join(row.get("accepts", [])), row.get("produces", "")
    if produces:
        return f"({accepts} -> {produces})" if accepts else f"(-> {'any family' if produces == '*' else produces})"
    return f"({accepts})" if accepts else ""
