"""Exported graphs wrapped as a model with taps, so that a metric evaluates the files themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.model import Sink, TapModel
from xarch.contracts.tap import Tap
from xarch.errors import PlanError
from xarch.export.examples import load_examples
from xarch.export.samples import prepared_by
from xarch.export.session import Sessions
from xarch.export.stored import read_profile
from xarch.files.manifest import verify


class ExportedModel(TapModel):
    """The graphs of a folder that declare all of their outputs, of one operating point.

    Args:
        folder: folder of an accepted export.
        student: the student whose taps the graphs compute.
        threads: number of runtime threads.
        point: operating point; by default the first of :func:`points_of`.

    Raises:
        PlanError: no graph declares its outputs.
        UsageError: a file of the export is damaged.
    """

    def __init__(self, folder: Path, student: TapModel, *, threads: int, point: str | None = None) -> None:
        verify(folder)
        described = read_profile(folder)
        declared = {n: entry for n, entry in described["graphs"].items() if entry["reads"] and entry["gives"]}
        chosen = next(iter(points_of(declared)), "") if point is None else point
        self.graphs: dict[str, dict[str, Any]] = {n: e for n, e in declared.items() if e["variant"] == chosen}
        if not self.graphs:
            raise PlanError(
                f"evaluate.exports: none of the graphs {', '.join(described['graphs'])} declares inputs and outputs, "
                "so the metric cannot evaluate them",
                "remove `evaluate.exports`, or let the target declare ExportGraph(reads={…}, gives={…})",
            )
        self.module, self.family, self.facts = nn.Module(), student.family, student.facts
        self._student, self._taps = student, student.taps()
        self._sessions = Sessions(folder, described["profile"]["provider"], threads=threads, optimise=True)
        self._examples = {name: load_examples(folder, name) for name in self.graphs}

    def taps(self) -> Mapping[str, Tap]:
        given = {tap for entry in self.graphs.values() for tap in entry["gives"].values()}
        return {name: tap for name, tap in self._taps.items() if name in given}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push the requested taps, computed by the exported files.

        Raises:
            PlanError: no graph computes a requested tap.
        """
        left = set(wanted)
        for name, entry in self.graphs.items():
            here = {output: tap for output, tap in entry["gives"].items() if tap in left}
            if not here:
                continue
            parts = list(self._calls(name, entry, batch, list(here)))
            for output, tap in here.items():
                sink(tap, torch.from_numpy(np.concatenate([part[output] for part in parts])[: len(batch)]))
                left.discard(tap)
        if left:
            raise PlanError(
                f"the metric reads {', '.join(sorted(left))}, the exported graphs compute {', '.join(self.taps())}",
                "remove `evaluate.exports`, or choose another metric",
            )

    def _calls(
        self, name: str, entry: Mapping[str, Any], batch: Batch, outputs: Collection[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Run one call, or calls of the graph's fixed size, padded by repeating the last sample."""
        examples, free = self._examples[name], set(entry["free"])
        values = {input_name: self._value(batch, key).cpu() for input_name, key in entry["reads"].items()}
        shared = {n for n, v in values.items() if examples[n].ndim == v.ndim - 1}
        fixed = {len(examples[n]) for n in values if n not in shared and n not in free}
        size = fixed.pop() if fixed else max(len(batch), 1)
        for start in range(0, len(batch), size):
            rows = torch.arange(start, start + size).clamp(max=len(batch) - 1)
            inputs = {n: _taken(v, rows, n in shared).numpy().astype(examples[n].dtype) for n, v in values.items()}
            found = self._sessions(name, {**{n: e for n, e in examples.items() if n not in inputs}, **inputs})
            yield {output: found[output] for output in outputs}

    def _value(self, batch: Batch, key: str) -> Tensor:
        """Return a tensor of the batch, or what a caller of the graph prepares from it."""
        tap = prepared_by(key)
        if tap is None:
            return batch[key]
        value: Tensor = self._student.collect(batch, {tap})[tap]
        return value


def points_of(graphs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the operating points of graphs as ``profile.json`` describes them: "" first, the student itself, then in
    their order."""
    return sorted({entry["variant"]: None for entry in graphs.values()}, key=bool)


def _taken(value: Tensor, rows: Tensor, shared: bool) -> Tensor:
    """Return the rows of a value, or the single value that all rows share.

    Raises:
        PlanError: a single value is required and the rows differ.
    """
    if not shared:
        return value[rows]
    if not bool((value[rows] == value[rows[:1]]).all()):
        raise PlanError("an exported graph takes one value per call, but the samples of the batch differ")
    return value[rows[0]]
