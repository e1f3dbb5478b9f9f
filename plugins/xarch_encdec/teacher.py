"""Teachers: an encoder-decoder of an earlier run, and a decoder as seen at the tokens of an answer.

Legend: B batch, S source tokens, T decoder tokens, L = S + T, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from xarch import Batch, LoadedTeacher, Sink, Tap, Teacher
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.facts import DecoderFacts
from xarch_encdec.student import Running
from xarch_encdec.taps import target_tail


class EncDecTeacher(Running, LoadedTeacher):
    """A finished encoder-decoder."""


def target_taps(facts: DecoderFacts, taps: Mapping[str, Tap]) -> dict[str, Tap]:
    """Return the taps of a decoder at the tokens of an answer: the residual stream, and what follows the last layer."""
    streams = {
        name: replace(tap, layout="BTD")
        for name, tap in taps.items()
        if tap.layout == "BLD" and tap.leaf in ("input", "output")
    }
    return streams | target_tail(facts)


class AnswerView(Teacher):
    """A decoder that reads source and decoder tokens as one row, seen at the decoder tokens alone.

    Batches hold the row as ``input_ids`` [B, L] and the decoder tokens as ``decoder_input_ids`` [B, T]; sources are
    padded on the left, so that the last T positions are the decoder's in every row.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.module, self.facts = teacher, teacher.module, teacher.facts
        self.family, self.ref, self.fingerprint = teacher.family, teacher.ref, teacher.fingerprint
        self._taps = target_taps(teacher.facts, teacher.taps())

    def taps(self) -> Mapping[str, Tap]:
        return self._taps

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push the wanted taps at the decoder tokens."""
        tokens = batch["decoder_input_ids"].shape[1]

        def cut(name: str, value: Any) -> None:
            if isinstance(value, FactoredLogits):
                sink(name, replace(value, x_BLD=value.x_BLD[:, -tokens:]))
            else:
                sink(name, value[:, -tokens:])

        self.teacher.run(batch, wanted, cut)

    def work(self, sample: Mapping[str, Any]) -> float:
        return self.teacher.work(sample)

    def packed(self, name: str, value: Any) -> Any:
        return self.teacher.packed(name, value)

    def unpacked(self, name: str, stored: Tensor) -> Any:
        return self.teacher.unpacked(name, stored)

    def constants(self) -> Mapping[str, Tensor]:
        return self.teacher.constants()

    def weights(self) -> Mapping[str, Tensor]:
        return self.teacher.weights()

    def processor(self) -> Any:
        return self.teacher.processor()

    def save_processor(self, folder: str) -> None:
        self.teacher.save_processor(folder)
