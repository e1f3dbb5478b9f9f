"""The exported files of a speech model as a model with logits, so that a metric evaluates the files themselves."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from xarch_encdec.exported import ExportedPair
from xarch_speech.driving import SpeechGraphs


class ExportedSpeech(ExportedPair[SpeechGraphs]):
    """Files that hear a recording."""

    graphs = SpeechGraphs
    reads = ("input_features",)

    def written(self, features_BMF: Tensor, tokens: int) -> list[list[int]]:
        """Return the most likely tokens of every recording, its end and what follows included."""
        features = features_BMF.cpu().numpy()
        one_by_one = self.driven.answer is not None
        parts = np.split(features, len(features)) if one_by_one else [features]
        return [row for part in parts for row in self.driven.written(self.call, part, tokens).tolist()]
