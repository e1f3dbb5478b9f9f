"""Targets whose students have recurrent mixers in place of attention, in all layers or in some."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import BaseModel, Field

from xarch import Initialisation, Student, Teacher, validated
from xarch_decoder.copying import check_initialisation, copy_trunk, merged
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.block import MixerFactory
from xarch_decoder.target import DecoderTarget
from xarch_mohawk.channels import state_channels
from xarch_mohawk.delta_fit import BETAS, HALF_LIVES, DeltaFit
from xarch_mohawk.dm2 import DM2
from xarch_mohawk.gdn import GDN
from xarch_mohawk.halflife import HalfLifeFit
from xarch_mohawk.mamba1 import Mamba1
from xarch_mohawk.mamba2 import Mamba2
from xarch_mohawk.options import DM2Options, GDNOptions, Mamba1Options, Mamba2Options, RecurrentOptions
from xarch_mohawk.solver import HeadsFit, MixerSolver, SolverOptions
from xarch_mohawk.student import RecurrentStudent
from xarch_mohawk.transfer import transfer_attention, transferred


class RecurrentTarget(DecoderTarget[RecurrentStudent]):
    """Builds, initialises and exports students; embedding, norms, MLPs and head are the teacher's.

    Class attributes:
        fits: options of its closed-form stages.
        columns: whether the scale of a head becomes a factor on the columns of the output projection; a mixer with a
            gain of its own needs none.
    """

    Options = RecurrentOptions
    fits: ClassVar[type[SolverOptions]] = SolverOptions
    students = RecurrentStudent
    columns: ClassVar[bool] = True

    @abstractmethod
    def factory(self, facts: DecoderFacts, options: Any) -> MixerFactory:
        """Return what builds the mixer of a layer.

        Raises:
            PlanError: the options do not fit the decoder.
        """

    @abstractmethod
    def heads_fit(self, mixer: Any, options: Any) -> HeadsFit:
        """Return the closed-form fit of a mixer's recurrence."""

    def build(
        self, facts: DecoderFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> RecurrentStudent:
        """Build one mixer per layer, or a recurrent one and the teacher's attention in every layer if a probe chooses.

        Raises:
            PlanError: the options do not fit the decoder.
        """
        chosen = cast(RecurrentOptions, options)
        recurrent = self.factory(facts, chosen)
        replaced = chosen.layers.replaced(facts.layers)
        count = chosen.layers.count
        if "layers" in decisions:
            replaced, count = [int(i) for i in decisions["layers"]], None
        both = [recurrent, Attention] if count is not None else [recurrent]
        mixers = [both if layer in replaced else [Attention] for layer in range(facts.layers)]
        return RecurrentStudent(facts, mixers, count=count, device=device)

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
        """Return the solver of one site, see ``fits``."""
        chosen = validated(self.fits, options, "stage options")
        mixer = self.own(student).mixer(int(site.rsplit(".", 1)[-1]))
        return MixerSolver(mixer, site, chosen, self.heads_fit(mixer, chosen), columns=self.columns)

    def solver_options(self) -> type[BaseModel]:
        return self.fits

    def recipe(self, facts: DecoderFacts, options: BaseModel) -> str:
        return "mohawk"


class DM2Target(RecurrentTarget):
    """Discrete Mamba-2 (MOHAWK, arXiv 2408.10189)."""

    Options = DM2Options
    columns = False

    def factory(self, facts: DecoderFacts, options: DM2Options) -> MixerFactory:
        channels = state_channels(facts, options.state_size)
        return partial(DM2, channels=channels, conv=options.conv, rope=options.rope)

    def heads_fit(self, mixer: DM2, options: SolverOptions) -> HeadsFit:
        return HalfLifeFit(mixer, options.half_lives)


class Mamba1Target(RecurrentTarget):
    """Mamba in MambaInLlama's mapping (arXiv 2408.15237)."""

    Options = Mamba1Options
    columns = False

    def factory(self, facts: DecoderFacts, options: Mamba1Options) -> MixerFactory:
        return partial(Mamba1, size=options.state_size or math.gcd(facts.head_dim, 16), conv=options.conv)

    def heads_fit(self, mixer: Mamba1, options: SolverOptions) -> HeadsFit:
        return HalfLifeFit(mixer, options.half_lives)


class Mamba2Target(RecurrentTarget):
    """Mamba-2 as published (arXiv 2405.21060)."""

    Options = Mamba2Options

    def factory(self, facts: DecoderFacts, options: Mamba2Options) -> MixerFactory:
        channels = state_channels(facts, options.state_size)
        return partial(Mamba2, channels=channels, conv=options.conv, bias=options.bias)

    def heads_fit(self, mixer: Mamba2, options: SolverOptions) -> HeadsFit:
        return HalfLifeFit(mixer, options.half_lives)


class DeltaSolverOptions(SolverOptions):
    """Options of a ``closed_form`` stage for Gated DeltaNet."""

    half_lives: list[Annotated[float, Field(gt=0, allow_inf_nan=True)]] = Field(
        list(HALF_LIVES),
        min_length=1,
        description="candidate half-lives in tokens, .inf for no decay; one is chosen per state",
    )
    betas: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        list(BETAS), min_length=1, description="candidates for the part of a value that is written"
    )


class GDNTarget(RecurrentTarget):
    """Gated DeltaNet (arXiv 2412.06464)."""

    Options = GDNOptions
    fits = DeltaSolverOptions

    def factory(self, facts: DecoderFacts, options: GDNOptions) -> MixerFactory:
        return partial(
            GDN,
            channels=state_channels(facts, options.state_size),
            conv=options.conv,
            rope=options.rope,
            shared=options.states == "shared",
            stock=options.form == "stock",
        )

    def heads_fit(self, mixer: GDN, options: DeltaSolverOptions) -> HeadsFit:
        return DeltaFit(mixer, options.half_lives, options.betas)


def _mixer_initialisation(facts: DecoderFacts, student: RecurrentStudent) -> Initialisation:
    """Return what :func:`transfer_attention` writes to the mixers."""
    sources: dict[str, tuple[str, ...]] = {}
    new: list[str] = []
    unused: list[str] = []
    for layer in student.replaced:
        mixer = student.mixer(layer)
        taken, own, left = transferred(facts, layer, mixer)
        stem = f"blocks.{layer}.mixers.{mixer.kind}."
        sources |= {stem + name: theirs for name, theirs in taken.items()}
        new += [stem + name for name in own]
        unused += left
    return Initialisation(mapped=tuple(sources), new=tuple(new), unused=tuple(unused), sources=sources)
