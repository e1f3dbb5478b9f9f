"""``encoder`` and ``decoder_1`` of an export, driven as on a device: numpy and calls alone.

Legend: B batch, S source tokens, T decoder tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xarch import Call, graph_metadata

if TYPE_CHECKING:
    from typing_extensions import Self

ENCODER, DECODER = "encoder", "decoder_1"

Values = dict[str, np.ndarray]


def source_names(layers: int, stem: str) -> list[str]:
    """Return the names of keys and values of the source: "present" as outputs, "past_key_values" as inputs."""
    return [f"{stem}.{j}.encoder.{what}" for j in range(layers) for what in ("key", "value")]


def own_names(layers: int, stem: str) -> list[str]:
    """Return the names of keys and values of the decoder's tokens."""
    return [f"{stem}.{j}.decoder.{what}" for j in range(layers) for what in ("key", "value")]


class AnswerGraphs:
    """The two graphs as procedures.

    Args:
        facts: metadata of ``decoder_1``: ``layers``, ``vocab``, ``cache`` (key/value heads and the width of a head),
            and with static shapes ``source`` and ``answer``, tokens of the buffers; such graphs take one row a call.
    """

    FACTS: ClassVar[tuple[str, ...]] = ("layers", "vocab", "cache", "source", "answer")

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.layers, self.vocab = int(facts["layers"]), int(facts["vocab"])
        self.heads, self.width = facts["cache"]
        self.source, self.answer = facts.get("source"), facts.get("answer")

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return those of an export."""
        told = graph_metadata(folder / f"{DECODER}.onnx")
        return cls({key: json.loads(told[f"xarch.{key}"]) for key in cls.FACTS if f"xarch.{key}" in told})

    def read(self, call: Call, *given: np.ndarray) -> Values:
        """Return what the decoder takes of sources in every step.

        Args:
            given: ids [B, S] and their mask [B, S].
        """
        ids_BS, mask_BS = given
        if self.source is not None:
            more = ((0, 0), (0, self.source - ids_BS.shape[1]))
            ids_BS, mask_BS = np.pad(ids_BS, more), np.pad(mask_BS, more)
        read = self.encoded(call, {"input_ids": ids_BS, "attention_mask": mask_BS})
        return {"encoder_attention_mask": mask_BS, **read}

    def encoded(self, call: Call, inputs: Values) -> Values:
        """Return what the encoder gives, under the names that the decoder takes it by."""
        found = call(ENCODER, inputs)
        names = zip(source_names(self.layers, "past_key_values"), source_names(self.layers, "present"), strict=True)
        return {name: found[given] for name, given in names}

    def memory(self, tokens: int) -> Values:
        """Return what the decoder takes of one source whose keys and values are zero, which take as long as others."""
        size = tokens if self.source is None else self.source
        mask_1S = (np.arange(size) < tokens).astype(np.int64)[None]
        return {"encoder_attention_mask": mask_1S, **self.zeros(size)}

    def zeros(self, size: int) -> Values:
        """Return keys and values of one source of so many positions, all zero."""
        keys = np.zeros((1, self.heads, size, self.width), np.float32)
        return dict.fromkeys(source_names(self.layers, "past_key_values"), keys)

    def empty(self, rows: int = 1) -> Values:
        """Return the decoder's own keys and values before its first token."""
        nothing = np.zeros((rows, self.heads, self.answer or 0, self.width), np.float32)
        return dict.fromkeys(own_names(self.layers, "past_key_values"), nothing)

    def step(
        self, call: Call, tokens_B1: np.ndarray, place: int, fixed: Values, held: Values
    ) -> tuple[np.ndarray, Values]:
        """Return the logits [B, 1, V] after the decoder's token number ``place``, and its keys and values."""
        at = {} if self.answer is None else {"position": np.array([place])}
        out = call(DECODER, {"input_ids": tokens_B1, **fixed, **held, **at})
        names = zip(own_names(self.layers, "past_key_values"), own_names(self.layers, "present"), strict=True)
        return out["logits"], {name: out[now] for name, now in names}

    def follow(self, call: Call, given: Sequence[np.ndarray], decoder_BT: np.ndarray) -> Values:
        """Return ``logits`` [B, T, V] of decoder tokens read one by one, and keys and values of all, as ``present``.

        Args:
            given: what :meth:`read` takes.
        """
        if self.answer is not None and len(decoder_BT) > 1:
            alone = (slice(i, i + 1) for i in range(len(decoder_BT)))
            rows = [self.follow(call, [x[one] for x in given], decoder_BT[one]) for one in alone]
            return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        tokens, logits = decoder_BT.shape[1], []
        fixed, held = self.read(call, *given), self.empty(len(decoder_BT))
        for t in range(tokens):
            logits_B1V, held = self.step(call, decoder_BT[:, t : t + 1], t, fixed, held)
            logits.append(logits_B1V)
        names = zip(own_names(self.layers, "present"), own_names(self.layers, "past_key_values"), strict=True)
        return {"logits": np.concatenate(logits, 1), **{now: held[name][:, :, :tokens] for now, name in names}}

    def write(self, call: Call, fixed: Values, start_B: np.ndarray, tokens: int) -> np.ndarray:
        """Return the most likely tokens [B, T] after sources, at most as many as the buffers hold."""
        held, token_B1, found = self.empty(len(start_B)), start_B[:, None], []
        for t in range(min(tokens, self.answer or tokens)):
            logits_B1V, held = self.step(call, token_B1, t, fixed, held)
            token_B1 = logits_B1V[:, -1].argmax(-1)[:, None]
            found.append(token_B1)
        return np.concatenate(found, 1)
