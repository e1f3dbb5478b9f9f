"""A finished student as the teacher of the next conversion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from xarch import Batch, LoadedTeacher, Sink, Tap, TapModel
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.decoder import MixerDecoder
from xarch_decoder.weights import attention_names


class StudentTeacher(LoadedTeacher):
    """A student with a :class:`MixerDecoder`, in eval mode and frozen, with canonical weight names.

    Taps are the student's, so layers whose attention was replaced provide their own factors instead of attention
    factors. Their mixers keep the student's names in :meth:`weights` (``blocks.3.mixers.KIND...``), unless they are
    attention over a memory: then their weights are an attention's.

    Args:
        student: owned by the teacher from now on; its parameters no longer require gradients.
        ref: its reference, e.g. ``run:DIR``.
        fingerprint: SHA-256 of its weights.
        processor: tokenizer that belongs to it, with ``save_pretrained``.
    """

    family = "decoder"

    def __init__(self, student: TapModel, *, ref: str, fingerprint: str, processor: Any = None) -> None:
        assert isinstance(student.module, MixerDecoder)
        super().__init__(student.module, student.facts, ref=ref, fingerprint=fingerprint, processor=processor)
        self.student, self.decoder = student, student.module

    def taps(self) -> Mapping[str, Tap]:
        return self.student.taps()

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        self.student.run(batch, wanted, sink)

    def work(self, sample: Mapping[str, Any]) -> float:
        return self.student.work(sample)

    def packed(self, name: str, value: Any) -> Any:
        return value.x_BLD if isinstance(value, FactoredLogits) else value

    def unpacked(self, name: str, stored: Tensor) -> Any:
        return self.decoder.logits(stored) if name == "logits" else stored

    def constants(self) -> Mapping[str, Tensor]:
        return self.student.constants()

    def weights(self) -> Mapping[str, Tensor]:
        canonical: dict[str, str] = {}
        for layer in range(self.facts.layers):
            block = self.decoder.block(layer)
            for kind in (kind for kind in block.kinds if isinstance(block.mixer(kind), Attention)):
                canonical |= attention_names(self.facts, layer, kind)
        return {canonical.get(name, name): p.detach() for name, p in self.module.named_parameters()}
