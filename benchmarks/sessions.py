"""Sessions on the graphs of a folder, for benchmarks that drive them by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Sessions:
    """Runs the graphs of a folder on one thread, with the options in their metadata; values stay numpy arrays, on both
    sides."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.open = folder, dict[str, tuple[Any, list[str]]]()

    def __call__(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Not before the first call: a process whose memory is measured has loaded nothing else.
        from xarch import graph_metadata, open_session

        if graph not in self.open:
            path = self.folder / f"{graph}.onnx"
            prepack = graph_metadata(path).get("xarch.prepack") != "false"
            session = open_session(path, "CPUExecutionProvider", threads=1, prepack=prepack)
            self.open[graph] = session, [output.name for output in session.get_outputs()]
        session, names = self.open[graph]
        return dict(zip(names, session.run(names, inputs), strict=True))
