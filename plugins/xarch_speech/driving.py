"""``encoder`` and ``decoder_1`` of a speech model, driven as on a device: numpy and calls alone.

Legend: B batch, M bands, F frames, T decoder tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xarch import Call, graph_metadata
from xarch_encdec.driving import DECODER, ENCODER, AnswerGraphs, Values, own_names, source_names


class SpeechGraphs(AnswerGraphs):
    """The two graphs as procedures.

    Args:
        facts: metadata of ``decoder_1``: those of :class:`AnswerGraphs`, ``start``, ``eos`` and ``sound``. All
            recordings have the same number of positions; graphs with buffers take one row a call.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        self.start, self.eos = [int(t) for t in facts["start"]], [int(t) for t in facts["eos"]]
        self.sound: dict[str, int] = dict(facts["sound"])

    @classmethod
    def of(cls, folder: Path) -> SpeechGraphs:
        """Return those of an export."""
        told = graph_metadata(folder / f"{DECODER}.onnx")
        keys = ("layers", "vocab", "cache", "source", "answer", "start", "eos", "sound")
        return cls({key: json.loads(told[f"xarch.{key}"]) for key in keys if f"xarch.{key}" in told})

    def hear(self, call: Call, features_BMF: np.ndarray) -> Values:
        """Return what the decoder takes of recordings in every step."""
        found = call(ENCODER, {"input_features": features_BMF})
        names = zip(source_names(self.layers, "past_key_values"), source_names(self.layers, "present"), strict=True)
        return {name: found[given] for name, given in names}

    def memory(self, tokens: int = 0) -> Values:
        """Return what the decoder takes of one recording whose keys and values are zero, which take as long."""
        keys = np.zeros((1, self.heads, int(self.source or tokens), self.width), np.float32)
        return dict.fromkeys(source_names(self.layers, "past_key_values"), keys)

    def transcript(self, call: Call, features_BMF: np.ndarray, decoder_BT: np.ndarray) -> Values:
        """Return ``logits`` [B, T, V] of decoder tokens read one by one, and keys and values of all, as ``present``."""
        if self.answer is not None and len(features_BMF) > 1:
            alone = (slice(i, i + 1) for i in range(len(features_BMF)))
            rows = [self.transcript(call, features_BMF[one], decoder_BT[one]) for one in alone]
            return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        fixed, held, logits = self.hear(call, features_BMF), self.empty(len(features_BMF)), []
        for t in range(decoder_BT.shape[1]):
            logits_B1V, held = self.step(call, decoder_BT[:, t : t + 1], t, fixed, held)
            logits.append(logits_B1V)
        names = zip(own_names(self.layers, "present"), own_names(self.layers, "past_key_values"), strict=True)
        kept = {now: held[name][:, :, : decoder_BT.shape[1]] for now, name in names}
        return {"logits": np.concatenate(logits, 1), **kept}

    def written(self, call: Call, features_BMF: np.ndarray, tokens: int) -> np.ndarray:
        """Return the most likely tokens [B, T] of every recording after those it begins with, at most ``tokens`` or as
        many as the buffers hold; fewer once every row has ended."""
        fixed, held = self.hear(call, features_BMF), self.empty(len(features_BMF))
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
