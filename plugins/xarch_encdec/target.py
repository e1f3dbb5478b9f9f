"""Target ``encdec``: an encoder and a decoder of a causal decoder's own layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel
from torch import nn

from xarch import (
    Batch,
    ExportGraph,
    Initialisation,
    ParityCase,
    PlanError,
    Profile,
    Student,
    Tap,
    TapModel,
    TargetAdapter,
    Teacher,
)
from xarch_decoder.facts import DecoderFacts
from xarch_encdec.bench import rival_graphs
from xarch_encdec.copying import copy_weights, initialisation
from xarch_encdec.export import EncDecExport, encdec_graphs
from xarch_encdec.exported import ExportedAnswers
from xarch_encdec.layout import Layout, counts_of, facts_of, layout_of
from xarch_encdec.options import EncDecOptions
from xarch_encdec.parity import answer_parity
from xarch_encdec.predict import predict
from xarch_encdec.student import EncDecStudent, own
from xarch_encdec.teacher import AnswerView, target_taps


class Built(EncDecStudent):
    """A student that knows which of the teacher's layers it is made of, and how its encoder is opened at first."""

    teacher: DecoderFacts

    def __init__(
        self, facts: DecoderFacts, options: EncDecOptions, layout: Layout, *, device: torch.device | str
    ) -> None:
        self.teacher, self.options, self.layout = facts, options, layout
        super().__init__(
            facts_of(facts, options, layout),
            places=dict(enumerate(layout.decoder)),
            traits=_traits(facts, options, layout),
            lengths={"source": options.prompt, "target": options.answer},
            device=device,
        )
        self.first = [float(options.mask == "full"), float(options.memory == "last")]
        count = counts_of(facts, options)[1]
        self.keep = count if count < len(layout.decoder) else None

    def finish(self) -> None:
        """Check that the decoder's layers are chosen.

        Raises:
            PlanError: no stage has chosen them.
        """
        if self.keep is not None:
            raise PlanError(
                f"plan drop: no stage chose {self.keep} of {len(self.layout.decoder)} decoder layers",
                "use the recipe `encdec-drop`, or a stage of kind drop_layers",
            )

    def decide(self, decisions: Mapping[str, Any]) -> None:
        """Apply ``{"decoder": [...]}``: keep the decoder layers made of these layers of the teacher.

        Raises:
            ValueError: the decision is unknown, or names a layer that the decoder does not have.
        """
        if not decisions:
            return
        if set(decisions) != {"decoder"} or not set(decisions["decoder"]) <= set(self.layout.decoder):
            raise ValueError(f"an encoder-decoder accepts decisions about its decoder's layers only, got {decisions}")
        kept = {j: i for j, i in enumerate(self.layout.decoder) if i in decisions["decoder"]}
        self.layout = replace(self.layout, decoder=tuple(kept.values()))
        self.facts = facts_of(self.teacher, self.options, self.layout)
        self.places, self.keep = dict(enumerate(kept.values())), None
        self.module.keep(list(kept), self.facts)


class EncDecTarget(TargetAdapter):
    """Every layer is one of the teacher's; what is new is what a cross-attention or a second norm adds."""

    Options = EncDecOptions
    ExportOptions = EncDecExport

    def tiny(self, options: BaseModel) -> BaseModel:
        return cast(EncDecOptions, options).tiny()

    def build(
        self, facts: DecoderFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> EncDecStudent:
        """Build encoder and decoder as the options plan them.

        Raises:
            PlanError: the teacher has too few layers, or nothing fits the budget.
        """
        chosen = cast(EncDecOptions, options)
        return Built(facts, chosen, layout_of(facts, chosen, decisions), device=device)

    def initialisation(self, facts: DecoderFacts, student: Student) -> Initialisation:
        built = _built(student)
        return initialisation(built.module, built.layout, facts)

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        built = _built(student)
        with torch.no_grad():
            built.module.opening.copy_(torch.tensor(built.first))
            if built.module.enter is not None:
                nn.init.eye_(built.module.enter.weight)
        return copy_weights(built.module, built.layout, teacher)

    def view(self, teacher: Teacher) -> Teacher:
        """Return the teacher at the tokens of the answer."""
        return AnswerView(teacher)

    def view_taps(self, facts: DecoderFacts, options: BaseModel, taps: Mapping[str, Tap]) -> Mapping[str, Tap]:
        return target_taps(facts, taps)

    def recipe(self, facts: DecoderFacts, options: BaseModel) -> str:
        return "encdec-drop" if cast(EncDecOptions, options).plan == "drop" else "encdec"

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return encdec_graphs(own(student), profile, options)

    def teacher_graphs(self, teacher: Teacher, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        """Return the teacher as a decoder with caches, without weights of its own."""
        return rival_graphs(teacher, profile)

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        return answer_parity(own(student), graphs, batches)

    def exported(self, folder: Path, student: Student, threads: int) -> TapModel:
        return ExportedAnswers(folder, own(student), threads=threads)


def _built(student: Student) -> Built:
    found = own(student)
    assert isinstance(found, Built)
    return found


def _traits(facts: DecoderFacts, options: EncDecOptions, layout: Layout) -> dict[str, str]:
    counts = counts_of(facts, options)
    decided = len(layout.decoder) == counts[1]
    common = sum(twin is not None for twin in layout.twins) if decided else max(0, sum(counts) - facts.layers)
    shared = common if options.share else 0
    prompt, answer, width = options.prompt, options.answer, options.encoder_width
    found = predict(facts, options.cross, *counts, prompt=prompt, answer=answer, shared=shared, width=width)
    both = f" ({shared} are both)" if shared else ""
    return {
        "layers": f"{found.encoder} encoder and {found.decoder} decoder layers{both} of the teacher's "
        f"{facts.layers}, {found.parameters:.2f} of its parameters",
        "predicted": f"prompt of {options.prompt}, answer of {options.answer} tokens: first token in "
        f"{found.first_token:.2f} of the teacher's time, {found.speed:.1f} times its tokens a second, "
        f"{found.total:.2f} of the whole time",
    }
