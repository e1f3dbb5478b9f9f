"""A finished student as the teacher of the next conversion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from xarch import Batch, Sink, Tap, Teacher, weights_digest
from xarch_decoder.copying import attention_names
from xarch_decoder.student import ATTENTION, DecoderStudent


class StudentTeacher(Teacher):
    """View of a :class:`DecoderStudent`: in eval mode, frozen, with canonical weight names.

    Taps are the student's own, so layers whose attention was replaced offer their factors instead of attention
    factors. Their mixers keep the student's names in :meth:`weights` (``blocks.3.mixers.KIND...``).

    Args:
        student: taken over; its parameters stop requiring gradients.
        ref: what names it, e.g. ``run:DIR``.
        processor: tokenizer that belongs to it, with ``save_pretrained``.
    """

    family = "decoder"

    def __init__(self, student: DecoderStudent, *, ref: str, processor: Any = None) -> None:
        self.student, self.facts, self.ref = student, student.facts, ref
        self.module = student.module.eval().requires_grad_(False)
        self._processor = processor
        self.fingerprint = weights_digest(self.weights())

    def taps(self) -> Mapping[str, Tap]:
        return self.student.taps()

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        self.student.run(batch, wanted, sink)

    def weights(self) -> Mapping[str, Tensor]:
        canonical: dict[str, str] = {}
        for layer in range(self.facts.layers):
            if ATTENTION in self.student.decoder.block(layer).kinds:
                canonical |= attention_names(self.facts, layer)
        return {canonical.get(name, name): p.detach() for name, p in self.module.named_parameters()}

    def processor(self) -> Any:
        return self._processor

    def save_processor(self, folder: str) -> None:
        if self._processor is not None:
            self._processor.save_pretrained(folder)
