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
    lines = [list(row) for row in rows]
    for place, column in enumerate(columns):
        longest = max((len(word) for line in lines for word in line[place].split()), default=0)
        made.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column in whole,
            min_width=min(longest, LEAST),
        )
    for row in lines:
        made.add_row(*(Text(cell, style=STYLES.get(cell.split(":")[0], "")) for cell in row))
    return made


LEAST = 10
"""Characters that a column keeps on a narrow terminal, if its words are as long."""

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
