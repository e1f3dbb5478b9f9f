"""Exported graphs as a model with taps, so that the run's metric judges the files themselves."""

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
from xarch.export.session import Sessions
from xarch.files.atomic import read_json


class ExportedModel(TapModel):
    """The graphs of a folder that say what all of their outputs are.

    Args:
        folder: of a passed export.
        student: whose taps they give.
        threads: of the runtime.

    Raises:
        PlanError: no graph says it.
    """

    def __init__(self, folder: Path, student: TapModel, *, threads: int) -> None:
        described = read_json(folder / "profile.json")
        self.graphs: dict[str, dict[str, Any]] = {
            name: entry
            for name, entry in described["graphs"].items()
            if entry["reads"] and entry["gives"] and not entry["variant"]
        }
        if not self.graphs:
            raise PlanError(
                f"evaluate.exports: none of the graphs {', '.join(described['graphs'])} says what it reads and gives, "
                "so the metric cannot judge them",
                "leave `evaluate.exports` out, or let the target declare ExportGraph(reads={…}, gives={…})",
            )
        self.module, self.family, self.facts = nn.Module(), student.family, student.facts
        self._taps = student.taps()
        self._sessions = Sessions(folder, described["profile"]["provider"], threads=threads, optimise=True)
        self._examples = {name: load_examples(folder, name) for name in self.graphs}

    def taps(self) -> Mapping[str, Tap]:
        given = {tap for entry in self.graphs.values() for tap in entry["gives"].values()}
        return {name: tap for name, tap in self._taps.items() if name in given}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push the wanted taps, computed by the files.

        Raises:
            PlanError: no graph gives a wanted tap.
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
                f"the metric reads {', '.join(sorted(left))}, and the exported graphs give {', '.join(self.taps())}",
                "leave `evaluate.exports` out, or choose another metric",
            )

    def _calls(
        self, name: str, entry: Mapping[str, Any], batch: Batch, outputs: Collection[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """One call, or calls of the graph's own size with the last sample again where some are missing."""
        examples, free = self._examples[name], set(entry["free"])
        values = {input_name: batch[key].cpu() for input_name, key in entry["reads"].items()}
        shared = {n for n, v in values.items() if examples[n].ndim == v.ndim - 1}
        fixed = {len(examples[n]) for n in values if n not in shared and n not in free}
        size = fixed.pop() if fixed else max(len(batch), 1)
        for start in range(0, len(batch), size):
            rows = torch.arange(start, start + size).clamp(max=len(batch) - 1)
            inputs = {n: _taken(v, rows, n in shared).numpy().astype(examples[n].dtype) for n, v in values.items()}
            found = self._sessions(name, {**{n: e for n, e in examples.items() if n not in inputs}, **inputs})
            yield {output: found[output] for output in outputs}


def _taken(value: Tensor, rows: Tensor, shared: bool) -> Tensor:
    """The rows of a value, or the one value that all of them share.

    Raises:
        PlanError: they do not share one.
    """
    if not shared:
        return value[rows]
    if not bool((value[rows] == value[rows[:1]]).all()):
        raise PlanError("an exported graph takes one value for all samples of a call, and those of a batch differ")
    return value[rows[0]]
