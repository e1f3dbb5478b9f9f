"""The exported files of an encoder-decoder as a model with logits, so that a metric evaluates the files themselves."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from xarch import Batch, Sink, Student
from xarch_decoder.exported import ExportedTokens, ReadLogits
from xarch_encdec.driving import AnswerGraphs

Graphs = TypeVar("Graphs", bound=AnswerGraphs)


class ExportedPair(ExportedTokens, Generic[Graphs]):
    """``encoder`` and ``decoder_1`` of an export.

    Attributes:
        graphs: how they are driven.
        reads: batch keys of what the encoder takes.
    """

    graphs: type[Graphs]
    reads: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path, student: Student, *, threads: int) -> None:
        super().__init__(folder, student, threads=threads)
        self.driven = self.graphs.of(folder)

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push the logits of every decoder token."""
        if "logits" not in wanted:
            return
        found = self.driven.follow(self.call, self.given(batch), batch["decoder_input_ids"].cpu().numpy())
        logits_BTV = torch.from_numpy(found["logits"])
        sink("logits", ReadLogits(logits_BTV, logits_BTV.new_empty(logits_BTV.shape[-1], 0)))

    def given(self, batch: Batch) -> list[np.ndarray]:
        """Return what the encoder takes of a batch."""
        return [batch[key].cpu().numpy() for key in self.reads]


class ExportedAnswers(ExportedPair[AnswerGraphs]):
    """Files that read a prompt."""

    graphs = AnswerGraphs
    reads = ("input_ids", "attention_mask")

    def write(self, batch: Batch, tokens: int) -> Tensor:
        """Return the most likely tokens [B, T] of every answer, or as many as the graphs' buffers hold."""
        given, start_B = self.given(batch), batch["decoder_input_ids"][:, 0].cpu().numpy()
        alone = self.driven.source is not None
        rows = [slice(i, i + 1) for i in range(len(batch))] if alone else [slice(None)]
        found = []
        for row in rows:
            fixed = self.driven.read(self.call, *(value[row] for value in given))
            found.append(self.driven.write(self.call, fixed, start_B[row], tokens))
        return torch.cat([torch.from_numpy(ids) for ids in found])
