"""Target ``memory``: the teacher's weights, with attention over a memory of constant size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from pydantic import BaseModel

from xarch import Batch, ExportGraph, Initialisation, ParityCase, PlanError, Profile, Student, Teacher
from xarch_decoder.copying import check_initialisation, copy_trunk, merged
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.target import DecoderTarget
from xarch_memory.options import MemoryOptions, Sizes
from xarch_memory.parity import memory_parity
from xarch_memory.student import MemoryStudent, decided_entries


class MemoryTarget(DecoderTarget[MemoryStudent]):
    """Every tensor is the teacher's; what changes is what attention may see."""

    Options = MemoryOptions
    students = MemoryStudent

    def build(
        self, facts: DecoderFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> MemoryStudent:
        """Give every head of every replaced layer the same entries, or those that a stage decided; with ``choose`` also
        the teacher's attention, until a stage has chosen.

        Raises:
            PlanError: the options do not fit the decoder.
        """
        chosen = cast(MemoryOptions, options)
        count = None if "layers" in decisions else chosen.layers.count
        named = decisions.get("layers", chosen.layers.replaced(facts.layers))
        layers = tuple(i for i in map(int, named) if facts.window(i) is None)
        if not layers:
            raise PlanError(
                "student.options.layers: every chosen layer has a sliding window of its own, whose memory is constant",
                "choose layers with full attention",
            )
        sizes = Sizes(chosen, facts)
        budget = chosen.budget(facts, count or len(layers))
        uniform = [sizes.most(budget // ((count or len(layers)) * facts.kv_heads))] * facts.kv_heads
        entries = decided_entries(decisions, layers, facts.kv_heads) or dict.fromkeys(layers, uniform)
        return MemoryStudent(facts, sizes, entries, budget, count=count, device=device)

    def recipe(self, facts: DecoderFacts, options: BaseModel) -> str:
        return "slot-memory"

    def initialisation(self, facts: DecoderFacts, student: Student) -> Initialisation:
        return merged(super().initialisation(facts, student), _measured(self.own(student)))

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        """Copy every tensor of the teacher; ranges of keys, values and queries are estimates until a stage measures
        them."""
        own = self.own(student)
        done = merged(copy_trunk(own, teacher), _measured(own))
        check_initialisation(own, done, teacher.weights())
        for layer in own.replaced:
            own.memory(layer).estimate_ranges(own.decoder.block(layer).norm1.weight)
        return done

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        return memory_parity(self.own(student), graphs, batches, dtype=profile.dtype)


def _measured(student: MemoryStudent) -> Initialisation:
    return Initialisation(new=tuple(name for name, _ in student.module.named_buffers()))
