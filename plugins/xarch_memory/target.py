"""Target ``memory``: the teacher's weights, with attention over a memory of constant size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field

from xarch import (
    Batch,
    ExportGraph,
    Initialisation,
    ParityCase,
    PlanError,
    Profile,
    Student,
    TargetAdapter,
    Teacher,
)
from xarch_decoder.copying import check_initialisation, copy_trunk, trunk_initialisation
from xarch_decoder.export import DecoderExport, Tokens, decoder_graphs
from xarch_decoder.facts import DecoderFacts
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


class MemoryTarget(TargetAdapter):
    """Every tensor is the teacher's; what changes is what attention may see."""

    Options = MemoryOptions
    ExportOptions = MemoryExport

    def tiny(self, options: BaseModel) -> BaseModel:
        chosen = _options(options)
        return chosen.model_copy(update={"layers": chosen.layers.tiny()})

    def build(
        self, facts: DecoderFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> MemoryStudent:
        """Give every head of every replaced layer the same entries, or those that a stage decided.

        Raises:
            PlanError: the options do not fit the decoder.
        """
        chosen = _options(options)
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

    def initialisation(self, facts: DecoderFacts, student: Student) -> Initialisation:
        return trunk_initialisation(facts, _student(student))

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        done = copy_trunk(_student(student), teacher)
        check_initialisation(_student(student), done, teacher.weights())
        return done

    def recipe(self, facts: DecoderFacts, options: BaseModel) -> str:
        return "slot-memory"

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return decoder_graphs(_student(student), profile, options)

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        return memory_parity(_student(student), graphs, batches)


def _options(options: BaseModel) -> MemoryOptions:
    if not isinstance(options, MemoryOptions):
        raise PlanError(f"target memory needs MemoryOptions, got {type(options).__name__}")
    return options


def _student(student: Student) -> MemoryStudent:
    if not isinstance(student, MemoryStudent):
        raise PlanError(f"this student, a {type(student).__name__}, was not built by target memory")
    return student
