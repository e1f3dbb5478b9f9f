"""The rich console of the command line."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console

PIPE_WIDTH = 160


class PlainConsole(Console):
    """Raises BrokenPipeError on a closed pipe; rich would exit with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(stream: TextIO) -> Console:
    """Return a console; it is wide if the output is not a terminal, so that lines in files are not wrapped."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return PlainConsole(file=stream, highlight=False, width=width)
