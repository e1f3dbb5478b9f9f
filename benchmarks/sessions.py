"""Calls of the graphs of a folder, for benchmarks that drive them by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Sessions:
    """Runs the graphs of a folder on one thread as their metadata want it; values stay numpy arrays, on both sides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._calls: Any = None

    def __call__(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Not before the first call: a process whose memory is measured has loaded nothing else.
        from xarch import GraphCalls

        if self._calls is None:
            self._calls = GraphCalls(self.folder, "CPUExecutionProvider", threads=1)
        found: dict[str, np.ndarray] = self._calls(graph, inputs)
        return found
