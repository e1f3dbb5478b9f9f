"""Target ``dm2``: a decoder whose attention becomes Discrete Mamba-2 (MOHAWK, arXiv 2408.10189)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from pydantic import BaseModel

from xarch import Initialisation, Student, Teacher, validated
from xarch_decoder.copying import check_initialisation, copy_trunk, merged
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.block import MixerFactory
from xarch_decoder.target import DecoderTarget
from xarch_mohawk.channels import state_channels
from xarch_mohawk.mixer import DM2
from xarch_mohawk.options import DM2Options
from xarch_mohawk.solver import MixerSolver, SolverOptions
from xarch_mohawk.student import DM2Student
from xarch_mohawk.transfer import transfer_attention, transferred


class DM2Target(DecoderTarget[DM2Student]):
    """Builds, initialises and exports students with DM2 mixers; embedding, norms, MLPs and head are the teacher's."""

    Options = DM2Options
    students = DM2Student

    def build(
        self, facts: DecoderFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> DM2Student:
        """Build one mixer per layer, or DM2 and the teacher's attention in every layer if a probe will choose.

        Raises:
            PlanError: the options do not fit the decoder.
        """
        chosen = cast(DM2Options, options)
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
        return merged(super().initialisation(facts, student), _mixer_initialisation(facts, self.own(student)))

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        own = self.own(student)
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
        return MixerSolver(self.own(student).mixer(layer), site, chosen)

    def solver_options(self) -> type[BaseModel]:
        return SolverOptions

    def recipe(self, facts: DecoderFacts, options: BaseModel) -> str:
        return "mohawk"


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
