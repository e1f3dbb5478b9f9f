"""The rich console of the command line: what it shows is cleaned, and is markup only where a call says so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from xarch.printable import clean

PIPE_WIDTH = 160


class PlainConsole(Console):
    """Cleans all text; raises BrokenPipeError on a closed pipe, where rich would exit with code 1."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yield the segments of anything printed; those that move the cursor are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(clean(segment.text), segment.style)

    def status(self, status: Any, **how: Any) -> Status:
        """Return a status line, whose text is no markup."""
        return super().status(Text(status) if isinstance(status, str) else status, **how)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(stream: TextIO | None = None) -> Console:
    """Return a console on a stream, by default standard error.

    It is wide if the output is not a terminal, so that lines in files are not wrapped. Text is printed as it is: square
    brackets are no markup.
    """
    stream = sys.stderr if stream is None else stream
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return PlainConsole(file=stream, highlight=False, markup=False, width=width)


def progress_bar(console: Console, *, transient: bool = True) -> Progress:
    """Return rich's usual progress bar, with descriptions that are no markup."""
    description = TextColumn("{task.description}", markup=False)
    columns = (description, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=transient)
