"""Stage kind ``drop_layers``: which decoder layers a student can do without.

Layers are left out one after another, each time the one whose absence costs least on top of those before it (SLEB,
arXiv 2402.09025), measured as KL(teacher ‖ student) at the tokens of answers. A source is read once for all trials.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, Options, StageContext, StageKind, StageOutcome, StageRequest, UsageError
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.scores import Scores, add_batch
from xarch_encdec.metric import answers_of
from xarch_encdec.model.layers import Cache
from xarch_encdec.student import EncDecStudent


class DropOptions(Options):
    """Options of a ``drop_layers`` stage."""

    tokens: int = Field(1024, ge=1, le=10**9, description="training tokens of sources and answers to measure on")


@dataclass
class _Known:
    """A batch whose sources are read: keys and values for every decoder layer, and what the teacher predicts."""

    seen: Batch
    source: list[Cache]
    teacher: FactoredLogits


class DropLayers(StageKind):
    """Decides ``decoder``, the teacher's layers that the student's decoder keeps; if they are given, the student stays
    as it is. Trains nothing."""

    Options = DropOptions

    def units(self, request: StageRequest) -> int:
        return int(request.options.tokens)

    def work(self, request: StageRequest, *, student: float, teacher: float) -> float:
        """The teacher once, and a few dozen passes of a decoder that reads the few tokens of answers."""
        return teacher + 10.0 * student

    @torch.no_grad()
    def run(self, context: StageContext) -> StageOutcome:
        student = context.student
        if not isinstance(student, EncDecStudent):
            raise UsageError(
                f"stage kind drop_layers needs an encoder-decoder, got a {type(student).__name__}",
                "--set student.target=encdec, or skip the stage",
            )
        if student.keep is None:
            return StageOutcome(metrics={"dropped": 0.0})
        if context.teacher is None:
            raise UsageError(
                "stage kind drop_layers needs a teacher, but this run has none",
                "--teacher REF, or another plan: --set student.options.plan=split",
            )
        known, tokens = _read(context, student)
        dropped: list[int] = []
        costs: dict[str, float] = {}
        rounds = student.facts.decoder - student.keep
        for done in range(rounds):
            left = [j for j in range(student.facts.decoder) if j not in dropped]
            tried = {j: _divergence(student, known, {*dropped, j}) for j in left}
            cheapest = min(left, key=lambda j: tried[j])
            dropped.append(cheapest)
            costs[f"decoder.{cheapest}"] = tried[cheapest]
            context.progress(tokens * (done + 1) // rounds, tokens, f"decoder.{cheapest}")
        kept = [student.places[j] for j in range(student.facts.decoder) if j not in dropped]
        return StageOutcome(
            metrics={"tokens": float(tokens), "dropped": float(rounds), "kl": _divergence(student, known, dropped)},
            decisions={"decoder": kept},
            per_site={"kl_without": costs},
        )


def _read(context: StageContext, student: EncDecStudent) -> tuple[list[_Known], int]:
    known, tokens = list[_Known](), 0
    stream = context.batches()
    while tokens < context.options.tokens:
        batch = next(stream)
        seen, given = batch.seen_by("student"), dict[str, Any]()
        context.run_teacher(batch, {"logits"}, given.__setitem__)
        model = student.module
        source = model.encode(seen["input_ids"], seen["attention_mask"], model.opened())
        known.append(_Known(seen, source, given["logits"]))
        tokens += batch.units
    return known, tokens


def _divergence(student: EncDecStudent, known: list[_Known], without: Collection[int]) -> float:
    """Return KL(teacher ‖ student without some decoder layers), nats a token of the answers."""
    scores, model = {"teacher": Scores(), "student": Scores()}, student.module
    for each in known:
        ids_BT: Tensor = each.seen["decoder_input_ids"]
        final_BTD, _ = model.decode(ids_BT, each.seen["attention_mask"], each.source, without=without)
        add_batch(answers_of(each.seen), each.teacher, {"student": model.logits(final_BTD)}, scores)
    return scores["student"].kl
