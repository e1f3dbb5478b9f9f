"""Terminate a process that exceeds its time limit and report the elapsed time, a lower bound of its run time."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

OVER_TIME = 124
"""Exit status of a process terminated by the watchdog."""


@contextmanager
def at_most(seconds: float, name: str) -> Iterator[None]:
    """Start a thread that, after ``seconds`` in the block, prints the elapsed time and terminates the process.

    PyTorch releases the interpreter lock in its operators and in the backward pass, so the thread can run.
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
