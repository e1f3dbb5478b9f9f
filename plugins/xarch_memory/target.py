"""Target ``memory``: the teacher's weights, with attention over a memory of constant size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from pydantic import BaseModel, Field

from xarch import Batch, ExportGraph, ParityCase, PlanError, Profile, Student
from xarch_decoder.export import DecoderExport, Tokens
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.target import DecoderTarget
from xarch_memory.options import MemoryOptions, Sizes
from xarch_memory.parity import memory_parity
from xarch_memory.student import MemoryStudent, decided_entries


class MemoryExport(DecoderExport):
    """Export options of a memory student: a prompt is read token by token, for its merges follow one another."""

    prefill: list[Tokens] = Field(
        default=[],
        max_length=8,
        description="tokens per call, one graph each, whose operators are repeated for every token; by default none",
    )


class MemoryTarget(DecoderTarget[MemoryStudent]):
    """Every tensor is the teacher's; what changes is what attention may see."""

    Options = MemoryOptions
    ExportOptions = MemoryExport
    students = MemoryStudent

    def build(
        self, facts: DecoderFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> MemoryStudent:
        """Give every head of every replaced layer the same entries, or those that a stage decided.

        Raises:
            PlanError: the options do not fit the decoder.
        """
        chosen = cast(MemoryOptions, options)
        layers = tuple(i for i in chosen.layers.replaced(facts.layers) if facts.window(i) is None)
        if not layers:
            raise PlanError(
                "student.options.layers: every chosen layer has a sliding window of its own, whose memory is constant",
                "choose layers with full attention",
            )
        sizes = Sizes(chosen, facts)
        budget = chosen.budget(facts, len(layers))
        uniform = [sizes.most(budget // (len(layers) * facts.kv_heads))] * facts.kv_heads
        entries = decided_entries(decisions, layers, facts.kv_heads) or dict.fromkeys(layers, uniform)
        return MemoryStudent(facts, sizes, entries, budget, device=device)

    def recipe(self, facts: DecoderFacts, options: BaseModel) -> str:
        return "slot-memory"

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        return memory_parity(self.own(student), graphs, batches)
