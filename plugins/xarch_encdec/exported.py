"""The exported files of an encoder-decoder as a model with logits, so that a metric evaluates the files themselves."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from xarch import Batch, Sink, Student
from xarch_decoder.exported import ExportedTokens, ReadLogits
from xarch_encdec.driving import AnswerGraphs


class ExportedAnswers(ExportedTokens):
    """``encoder`` and ``decoder_1`` of an export."""

    def __init__(self, folder: Path, student: Student, *, threads: int) -> None:
        super().__init__(folder, student, threads=threads)
        self._driven = AnswerGraphs.of(folder)

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push the logits of every decoder token."""
        if "logits" not in wanted:
            return
        given = (batch[key].cpu().numpy() for key in ("input_ids", "attention_mask", "decoder_input_ids"))
        logits_BTV = torch.from_numpy(self._driven.follow(self.call, *given)["logits"])
        sink("logits", ReadLogits(logits_BTV, logits_BTV.new_empty(logits_BTV.shape[-1], 0)))

    def write(self, batch: Batch, tokens: int) -> Tensor:
        """Return the most likely tokens [B, T] of every answer, or as many as the graphs' buffers hold."""
        ids_BS, mask_BS, decoder_BT = (
            batch[key].cpu().numpy() for key in ("input_ids", "attention_mask", "decoder_input_ids")
        )
        one_by_one = range(len(batch)) if self._driven.source is not None else [slice(None)]
        rows = [slice(i, i + 1) if isinstance(i, int) else i for i in one_by_one]
        found = []
        for row in rows:
            fixed = self._driven.read(self.call, ids_BS[row], mask_BS[row])
            found.append(self._driven.write(self.call, fixed, decoder_BT[row, 0], tokens))
        return torch.cat([torch.from_numpy(ids) for ids in found])
