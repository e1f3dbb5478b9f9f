"""Target ``dm2``: a decoder whose attention becomes Discrete Mamba-2 (MOHAWK, arXiv 2408.10189)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel

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
    validated,
)
from xarch_decoder.copying import check_initialisation, copy_trunk, merged, trunk_initialisation
from xarch_decoder.export import DecoderExport, decoder_graphs
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.block import MixerFactory
from xarch_decoder.parity import decoder_parity
from xarch_mohawk.channels import state_channels
from xarch_mohawk.mixer import DM2
from xarch_mohawk.options import DM2Options
from xarch_mohawk.solver import MixerSolver, SolverOptions
from xarch_mohawk.student import DM2Student
from xarch_mohawk.transfer import transfer_attention, transferred


class DM2Target(TargetAdapter):
    """Builds, initialises and exports students with DM2 mixers; embedding, norms, MLPs and head are the teacher's."""

    Options = DM2Options
    ExportOptions = DecoderExport

    def tiny(self, options: BaseModel) -> BaseModel:
        chosen = _dm2(options)
        return chosen.model_copy(update={"layers": chosen.layers.tiny()})

    def build(
        self, facts: DecoderFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> DM2Student:
        """Build one mixer per layer, or DM2 and the teacher's attention in every layer if a probe will choose.

        Raises:
            PlanError: the options do not fit the decoder.
        """
        chosen = _dm2(options)
        dm2: MixerFactory = partial(
            DM2, channels=state_channels(facts, chosen.state_size), conv=chosen.conv, rope=chosen.rope
        )
        replaced = chosen.layers.replaced(facts.layers)
        count = chosen.layers.count
        if "layers" in decisions:
            replaced, count = [int(i) for i in decisions["layers"]], None
        both = [dm2, Attention] if count is not None else [dm2]
        mixers = [both if layer in replaced else [Attention] for layer in range(facts.layers)]
        return DM2Student(facts, mixers, count=count, device=device)

    def initialisation(self, facts: DecoderFacts, student: Student) -> Initialisation:
        return _initialisation(facts, _student(student))

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        own = _student(student)
        copied = copy_trunk(own, teacher)
        weights = teacher.weights()
        for layer in own.replaced:
            transfer_attention(own.mixer(layer), teacher.facts, layer, weights)
        done = merged(copied, _mixer_initialisation(teacher.facts, own))
        check_initialisation(own, done, weights)
        return done

    def solver(self, student: Student, site: str, options: Mapping[str, Any]) -> MixerSolver:
        """Return the solver of one site, see :class:`SolverOptions`."""
        chosen = validated(SolverOptions, options, "stage options")
        layer = int(site.rsplit(".", 1)[-1])
        return MixerSolver(_student(student).mixer(layer), site, chosen)

    def solver_options(self) -> type[BaseModel]:
        return SolverOptions

    def recipe(self, facts: DecoderFacts, options: BaseModel) -> str:
        return "mohawk"

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return decoder_graphs(_student(student), profile, options)

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        return decoder_parity(_student(student), graphs, batches)


def _dm2(options: BaseModel) -> DM2Options:
    if not isinstance(options, DM2Options):
        raise PlanError(f"target dm2 needs DM2Options, got {type(options).__name__}")
    return options


def _student(student: Student) -> DM2Student:
    if not isinstance(student, DM2Student):
        raise PlanError(f"this student, a {type(student).__name__}, was not built by target dm2")
    return student


def _initialisation(facts: DecoderFacts, student: DM2Student) -> Initialisation:
    return merged(trunk_initialisation(facts, student), _mixer_initialisation(facts, student))


def _mixer_initialisation(facts: DecoderFacts, student: DM2Student) -> Initialisation:
    """Return what :func:`transfer_attention` writes to the mixers."""
    sources: dict[str, tuple[str, ...]] = {}
    new: list[str] = []
    for layer in student.replaced:
        taken, own = transferred(facts, layer, student.mixer(layer))
        stem = f"blocks.{layer}.mixers.{DM2.kind}."
        sources |= {stem + name: theirs for name, theirs in taken.items()}
        new += [stem + name for name in own]
    return Initialisation(mapped=tuple(sources), new=tuple(new), sources=sources)
