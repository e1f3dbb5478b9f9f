"""The student: an encoder-decoder with taps."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xarch import Batch, PlanError, Sink, Student, Teacher
from xarch_decoder.facts import DecoderFacts
from xarch_encdec.facts import EncDecFacts
from xarch_encdec.model.layers import Cache
from xarch_encdec.model.network import EncDecModel, Opening
from xarch_encdec.running import Predicting

FUTURE, LAST = "encoder_future", "memory_last"
"""Batch keys [B] of a schedule that opens the encoder, see :class:`Opening`; the same for all samples."""


class Running(Predicting):
    """An :class:`EncDecModel` whose taps are read; base of student and teacher."""

    family = "encdec"
    module: EncDecModel
    facts: EncDecFacts
    written = re.compile(r"decoder\.\d+\.(input|output)|final|logits")

    def read(self, batch: Batch, wanted: Collection[str], sink: Sink) -> list[Cache]:
        return self.module.encode(batch["input_ids"], batch["attention_mask"], self.opening(batch), wanted, sink)

    def write(self, batch: Batch, source: list[Cache], wanted: Collection[str], sink: Sink) -> Tensor:
        ids_BT, mask_BS = batch["decoder_input_ids"], batch["attention_mask"]
        final_BTD, _ = self.module.decode(ids_BT, mask_BS, source, None, wanted, sink)
        return final_BTD

    def opening(self, batch: Batch) -> Opening:
        """Return how far the encoder is opened for a batch."""
        return self.module.opened()


class EncDecStudent(Running, Student):
    """A student; its decoder layers stand for the teacher's at the tokens of the answer.

    Args:
        facts: the architecture.
        places: decoder layer -> the teacher's layer it stands for.
        traits: what the plan says of it.
        lengths: ``source`` and ``target`` tokens of a pair it is planned for.
        device: device of the parameters; "meta" allocates nothing.

    Attributes:
        teacher: facts of the decoder that it is made of; None if it is not known.
        keep: number of decoder layers that a stage is to keep; None if they are decided.
    """

    teacher: DecoderFacts | None = None

    def __init__(
        self,
        facts: EncDecFacts,
        *,
        places: Mapping[int, int] | None = None,
        traits: Mapping[str, str] | None = None,
        lengths: Mapping[str, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.lengths = dict(lengths or {"source": 512, "target": 64})
        self.facts, self.places, self._traits = facts, dict(places or {}), dict(traits or {})
        self.keep: int | None = None
        with torch.device(device):
            self.module = EncDecModel(facts)

    def opening(self, batch: Batch) -> Opening:
        """Return the opening of a schedule where the batch has one; in training the module keeps it, as a norm keeps
        its statistics."""
        future_B, last_B = batch.get(FUTURE), batch.get(LAST)
        if future_B is None or last_B is None or future_B.device.type == "meta":
            return self.module.opened()
        opening = Opening(float(future_B[0]), float(last_B[0]))
        if self.module.training:
            with torch.no_grad():
                self.module.opening.copy_(torch.tensor([opening.future, opening.last]))
        return opening

    def traits(self) -> Mapping[str, str]:
        return self._traits

    def layer_map(self) -> Mapping[int, int]:
        return self.places

    def counterparts(self) -> Mapping[str, str]:
        """Pair the decoder's layers with the teacher's; the encoder's have none, for they read to both sides."""
        return {
            f"decoder.{j}.{leaf}": f"blocks.{i}.{leaf}" for j, i in self.places.items() for leaf in ("input", "output")
        }

    def param_groups(self) -> Mapping[str, list[str]]:
        """Return parameter names by group.

        Groups: ``encoder`` (with its norm), ``decoder`` (without what reads the source), ``cross`` (what reads the
        source: the cross-attention, or of a merged attention the keys and values), ``embedding``, ``head`` (the
        embedding if tied), ``norms`` (of the decoder's end) and ``all``.
        """
        groups: dict[str, list[str]] = {
            key: [] for key in ("encoder", "decoder", "cross", "embedding", "head", "norms", "all")
        }
        for name, _ in self.module.named_parameters():
            groups["all"].append(name)
            groups[_group_of(name, self.facts.cross == "merged")].append(name)
        if self.facts.layer.tied:
            groups["head"] += groups["embedding"]
        return groups

    def as_teacher(self, ref: str, fingerprint: str, processor: Any = None) -> Teacher:
        """Return this student, frozen and in eval mode, as the teacher of another conversion."""
        from xarch_encdec.teacher import EncDecTeacher

        return EncDecTeacher(self.module, self.facts, ref=ref, fingerprint=fingerprint, processor=processor)

    def shard_units(self) -> Iterable[nn.Module]:
        return [*self.module.encoder, *self.module.decoder]


def own(student: Student) -> EncDecStudent:
    """Return a student as one of this family.

    Raises:
        PlanError: it is not one.
    """
    if not isinstance(student, EncDecStudent):
        raise PlanError(f"this student is a {type(student).__name__}, the target builds EncDecStudent")
    return student


def _group_of(name: str, merged: bool) -> str:
    parts = name.split(".")
    if parts[0] == "decoder":
        reads = parts[2] in ("cross", "norm_cross", "post_cross")
        reads |= merged and parts[2] == "attention" and parts[3] in ("k", "v", "k_norm")
        return "cross" if reads else "decoder"
    renamed = {"encoder_norm": "encoder", "enter": "encoder", "embed": "embedding", "norm": "norms"}
    return renamed.get(parts[0], parts[0])
