"""Ends a process whose run takes too long, and says how long it had taken: a lower bound of its time, never a guess."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

OVER_TIME = 124
"""Exit status of a process that was ended."""


@contextmanager
def at_most(seconds: float, name: str) -> Iterator[None]:
    """Within the block a second thread waits; after ``seconds`` it prints what had passed and ends the process.

    PyTorch lets go of the interpreter lock in its operators and in the backward pass, so the thread gets its turn.
    """
    start, cpu = time.perf_counter(), time.process_time()
    done = threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            passed = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            print("\n" + json.dumps({"pass": name, "at_least": passed}), flush=True)
            os._exit(OVER_TIME)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
