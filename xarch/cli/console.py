"""The rich console of this program."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console

PIPE_WIDTH = 160


class PlainConsole(Console):
    """Leaves a closed pipe to the caller, where rich would end the program with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(stream: TextIO) -> Console:
    """A console that is wide where nobody watches, so that lines in files stay whole."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return PlainConsole(file=stream, highlight=False, width=width)
