"""Plain tables that are also readable in a log file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), whole: Sequence[str] = ()
) -> Table:
    """Return a table without a frame; ``right``: columns of numbers, ``whole``: columns that are not wrapped."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in whole
        )
    for row in rows:
        made.add_row(*(Text(cell, style=STYLES.get(cell.split(":")[0], "")) for cell in row))
    return made


STYLES = {
    "ready": "green",
    "ok": "green",
    "passed": "green",
    "failed": "red",
    "missed": "red",
    "conflict": "red",
    "unknown-family": "red",
    "incompatible": "yellow",
    "needs": "yellow",
    "missing-extra": "yellow",
    "disabled": "dim",
}
