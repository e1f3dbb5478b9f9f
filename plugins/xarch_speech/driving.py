"""``encoder`` and ``decoder_1`` of a speech model, driven as on a device: numpy and calls alone.

Legend: B batch, M bands, F frames, T decoder tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xarch import Call
from xarch_encdec.driving import AnswerGraphs, Values


class SpeechGraphs(AnswerGraphs):
    """The two graphs as procedures.

    Args:
        facts: metadata of ``decoder_1``: those of :class:`AnswerGraphs`, ``start``, ``eos`` and ``sound``. All
            recordings have the same number of positions; graphs with buffers take one row a call.
    """

    FACTS = (*AnswerGraphs.FACTS, "start", "eos", "sound")

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        self.start, self.eos = [int(t) for t in facts["start"]], [int(t) for t in facts["eos"]]
        self.sound: dict[str, int] = dict(facts["sound"])

    def read(self, call: Call, *given: np.ndarray) -> Values:
        """Return what the decoder takes of recordings in every step.

        Args:
            given: features [B, M, F].
        """
        [features_BMF] = given
        return self.encoded(call, {"input_features": features_BMF})

    def memory(self, tokens: int = 0) -> Values:
        """Return what the decoder takes of one recording whose keys and values are zero, which take as long."""
        return self.zeros(int(self.source or tokens))

    def written(self, call: Call, features_BMF: np.ndarray, tokens: int) -> np.ndarray:
        """Return the most likely tokens [B, T] of every recording after those it begins with, at most ``tokens`` or as
        many as the buffers hold; fewer once every row has ended."""
        fixed, held = self.read(call, features_BMF), self.empty(len(features_BMF))
        rows, place, found = len(features_BMF), 0, list[np.ndarray]()
        ended_B = np.zeros(rows, bool)
        for token in self.start:
            logits_B1V, held = self.step(call, np.full((rows, 1), token), place, fixed, held)
            place += 1
        room = tokens if self.answer is None else min(tokens, self.answer - place + 1)
        while len(found) < room and not ended_B.all():
            if found:
                logits_B1V, held = self.step(call, found[-1], place, fixed, held)
                place += 1
            found.append(logits_B1V[:, -1].argmax(-1)[:, None])
            ended_B |= np.isin(found[-1][:, 0], self.eos)
        return np.concatenate(found, 1)
