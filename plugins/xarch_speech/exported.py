"""The exported files of a speech model as a model with logits, so that a metric evaluates the files themselves."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xarch import Batch, Sink, Student
from xarch_decoder.exported import ExportedTokens, ReadLogits
from xarch_speech.driving import SpeechGraphs


class ExportedSpeech(ExportedTokens):
    """``encoder`` and ``decoder_1`` of an export."""

    def __init__(self, folder: Path, student: Student, *, threads: int) -> None:
        super().__init__(folder, student, threads=threads)
        self._driven = SpeechGraphs.of(folder)

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push the logits of every decoder token."""
        if "logits" not in wanted:
            return
        given = (batch[key].cpu().numpy() for key in ("input_features", "decoder_input_ids"))
        logits_BTV = torch.from_numpy(self._driven.transcript(self.call, *given)["logits"])
        sink("logits", ReadLogits(logits_BTV, logits_BTV.new_empty(logits_BTV.shape[-1], 0)))

    def written(self, features_BMF: Tensor, tokens: int) -> list[list[int]]:
        """Return the most likely tokens of every recording, its end and what follows included."""
        features = features_BMF.cpu().numpy()
        one_by_one = self._driven.answer is not None
        parts = np.split(features, len(features)) if one_by_one else [features]
        return [row for part in parts for row in self._driven.written(self.call, part, tokens).tolist()]
