"""Example inputs stored with exported graphs: used by the bench, and a starting point for callers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xarch.contracts.export import ExportGraph
from xarch.export.samples import resized

FOLDER = "examples"


def save_examples(graphs: Sequence[ExportGraph], folder: Path) -> None:
    """Write ``examples/GRAPH.npz`` for every graph: its example inputs, with free dimensions sized as in its
    ``throughput``."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for graph in graphs:
        sizes = graph.throughput.sizes if graph.throughput is not None else {}
        arrays: dict[str, Any] = {
            name: resized(value, graph.dynamic.get(name, {}), sizes).cpu().numpy()
            for name, value in graph.inputs.items()
        }
        # Compression removes the zeros of empty caches.
        with open(folder / FOLDER / f"{graph.name}.npz", "wb") as file:
            np.savez_compressed(file, **arrays)


def load_examples(folder: Path, graph: str) -> dict[str, np.ndarray]:
    """Return input name -> array; empty if there are no examples."""
    path = folder / FOLDER / f"{graph}.npz"
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
