"""transformers talks and draws bars on stderr by itself; xarch says what matters in its own words."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers shows errors only inside the block; what was set before comes back."""
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
    """A line for the person at the terminal; stdout belongs to ``--json``."""
    print(text, file=sys.stderr, flush=True)
