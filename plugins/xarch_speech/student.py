"""Student and teacher: models that hear speech, with taps."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xarch import Batch, LoadedTeacher, PlanError, Sink, Student, Teacher
from xarch_encdec.running import Predicting
from xarch_speech.facts import SpeechFacts
from xarch_speech.model import Cache, SpeechModel

MEMORY = "memory"
"""Batch key [B, S, D] of what an equal encoder heard already; models that have it leave out their own."""

ENCODER = re.compile(r"encoder\.\d+\.(input|output)")
"""Taps inside the encoder."""


class Running(Predicting):
    """A :class:`SpeechModel` whose taps are read; base of student and teacher."""

    family = "speech"
    module: SpeechModel
    facts: SpeechFacts
    written = re.compile(r"decoder\.\d+\.(input|own|heard|output)|final|logits")

    def read(self, batch: Batch, wanted: Collection[str], sink: Sink) -> list[Cache]:
        memory_BSD = self.heard(batch, wanted, sink)
        if "memory" in wanted:
            sink("memory", memory_BSD)
        return self.module.read(memory_BSD, wanted, sink)

    def write(self, batch: Batch, source: list[Cache], wanted: Collection[str], sink: Sink) -> Tensor:
        final_BTD, _ = self.module.decode(batch["decoder_input_ids"], source, None, wanted, sink)
        return final_BTD

    def heard(self, batch: Batch, wanted: Collection[str] = (), sink: Sink = lambda name, value: None) -> Tensor:
        """Return the encoder's last output for a batch [B, S, D]: what the batch has, if nothing inside the encoder is
        wanted."""
        known_BSD = batch.get(MEMORY)
        if known_BSD is not None and not any(ENCODER.fullmatch(name) for name in wanted):
            return known_BSD
        return self.module.encode(batch["input_features"], wanted, sink)


class SpeechTeacher(Running, LoadedTeacher):
    """A loaded model; its processor is a :class:`xarch_speech.processor.SpeechProcessor`."""


class SpeechStudent(Running, Student):
    """A student whose layers are some of the teacher's.

    Args:
        facts: the architecture.
        encoder, decoder: the teacher's layer behind each layer; as many as the facts say.
        traits: what the plan says of it.
        device: device of the parameters; "meta" allocates nothing.
    """

    def __init__(
        self,
        facts: SpeechFacts,
        encoder: Iterable[int],
        decoder: Iterable[int],
        *,
        traits: Mapping[str, str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.facts, self._traits = facts, dict(traits or {})
        self.encoder, self.decoder = tuple(encoder), tuple(decoder)
        with torch.device(device):
            self.module = SpeechModel(facts)

    def traits(self) -> Mapping[str, str]:
        return self._traits

    def layer_map(self) -> Mapping[int, int]:
        return dict(enumerate(self.decoder))

    def counterparts(self) -> Mapping[str, str]:
        """Pair every tap of a layer with that of the teacher's layer behind it."""
        places = {f"encoder.{k}.": f"encoder.{i}." for k, i in enumerate(self.encoder)}
        places |= {f"decoder.{j}.": f"decoder.{i}." for j, i in enumerate(self.decoder)}
        found = {}
        for name in self.taps():
            place = next((own for own in places if name.startswith(own)), None)
            found[name] = name if place is None else places[place] + name.removeprefix(place)
        return found

    def param_groups(self) -> Mapping[str, list[str]]:
        """Return parameter names by group: ``encoder`` (with convolutions, positions and norm), ``decoder`` (with
        positions and norm, without what follows), ``cross`` (cross-attention and its norm), ``embedding`` (also the
        head) and ``all``."""
        groups: dict[str, list[str]] = {key: [] for key in ("encoder", "decoder", "cross", "embedding", "all")}
        for name, _ in self.module.named_parameters():
            groups["all"].append(name)
            groups[_group_of(name)].append(name)
        return groups

    def no_decay(self) -> Collection[str]:
        few = [name for name, p in self.module.named_parameters() if p.ndim < 2]
        return [*few, "places", "encoder_places"]

    def as_teacher(self, ref: str, fingerprint: str, processor: Any = None) -> Teacher:
        """Return this student, frozen and in eval mode, as the teacher of another conversion."""
        return SpeechTeacher(self.module, self.facts, ref=ref, fingerprint=fingerprint, processor=processor)

    def shard_units(self) -> Iterable[nn.Module]:
        return [*self.module.encoder, *self.module.decoder]


SIDE = ("hear1.", "hear2.", "encoder_places", "encoder.", "encoder_norm.")
"""Beginnings of the names of what an encoder consists of."""


def same_encoder(one: Running, other: Running) -> bool:
    """Return whether two models hear the same, bit for bit."""
    first, second = one.module.state_dict(), other.module.state_dict()
    names = {name for name in {*first, *second} if name.startswith(SIDE)}
    return all(name in first and name in second and torch.equal(first[name], second[name]) for name in names)


def own(student: Student) -> SpeechStudent:
    """Return a student as one of this family.

    Raises:
        PlanError: it is not one.
    """
    if not isinstance(student, SpeechStudent):
        raise PlanError(f"this student is a {type(student).__name__}, the target builds SpeechStudent")
    return student


def _group_of(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "decoder" and parts[2] in ("cross", "norm_cross"):
        return "cross"
    if parts[0] == "embed":
        return "embedding"
    return "decoder" if parts[0] in ("decoder", "places", "norm") else "encoder"
