"""Suppression of transformers' log messages and progress bars on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Limit transformers' output to errors within the block; restores the previous settings."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def say(text: str) -> None:
    """Print a line to stderr; stdout is reserved for ``--json``."""
    print(text, file=sys.stderr, flush=True)
