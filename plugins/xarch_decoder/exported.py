"""The exported files of a decoder as a model with logits, so that a metric evaluates the files themselves.

Legend: B batch, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from xarch import Batch, GraphCalls, Sink, Student, Tap, TapModel, graph_metadata, read_json
from xarch_decoder.bench import LanguageGraphs
from xarch_decoder.factored import FactoredLogits


@dataclass
class ReadLogits(FactoredLogits):
    """Logits that are computed already: ``x_BLD`` holds them."""

    def of(self, x_TD: Tensor) -> Tensor:
        return x_TD.float()


class ExportedTokens(TapModel):
    """Base of exported files that are called for one token after another and give logits.

    Args:
        folder: the export.
        student: whose logits the graphs compute.
        threads: of the runtime.
    """

    def __init__(self, folder: Path, student: Student, *, threads: int) -> None:
        self.module, self.family, self.facts = nn.Module(), student.family, student.facts
        self._logits = student.taps()["logits"]
        provider: str = read_json(folder / "profile.json")["profile"]["provider"]
        self.call = GraphCalls(folder, provider, threads=threads)

    def taps(self) -> Mapping[str, Tap]:
        return {"logits": self._logits}


class ExportedDecoder(ExportedTokens):
    """``decode_1`` of an export, or ``decode_1-POINT``; documents of a row begin with empty states."""

    def __init__(self, folder: Path, student: Student, *, threads: int, point: str = "") -> None:
        super().__init__(folder, student, threads=threads)
        graphs = read_json(folder / "profile.json")["graphs"]
        self._driven = LanguageGraphs({name: graph_metadata(folder / f"{name}.onnx") for name in graphs}, point)

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push the logits of every token."""
        if "logits" not in wanted:
            return
        ids_BL, segments_BL = batch["input_ids"].cpu().numpy(), batch.tensors.get("segment_ids")
        parts_BL = np.zeros_like(ids_BL) if segments_BL is None else segments_BL.cpu().numpy()
        rows = [self._row(ids_L, parts_L) for ids_L, parts_L in zip(ids_BL, parts_BL, strict=True)]
        logits_BLV = torch.from_numpy(np.stack(rows))
        sink("logits", ReadLogits(logits_BLV, logits_BLV.new_empty(logits_BLV.shape[-1], 0)))

    def _row(self, ids_L: np.ndarray, parts_L: np.ndarray) -> np.ndarray:
        found = np.empty((len(ids_L), self._driven.vocab), np.float32)
        position, held = 0, self._driven.initial(room=len(ids_L))
        for i in range(len(ids_L)):
            if i and parts_L[i] != parts_L[i - 1]:
                position, held = 0, self._driven.initial()
            logits, held = self._driven.step(self.call, ids_L[i : i + 1], position, held)
            found[i], position = logits[0, -1], position + 1
        return found
