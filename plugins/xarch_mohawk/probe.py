"""Stage kind ``kl_probe``: find the layers whose attention costs the least to replace.

Each undecided layer is replaced alone and KL(teacher ‖ student) is measured at the logits. Relative errors of the
mixers rank layers wrongly: the first layers fit best but cost the most.

Legend: L tokens, D width, V vocabulary, T tokens in a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Batch, Options, StageContext, StageKind, StageOutcome, StageRequest, UsageError
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.model.mixer import ATTENTION
from xarch_mohawk.student import RecurrentStudent


class ProbeOptions(Options):
    """Options of a ``kl_probe`` stage."""

    tokens: int = Field(1024, ge=1, le=10**12, description="number of training tokens to measure on")


class KLProbe(StageKind):
    """Decides ``layers``: the ``count`` layers with the lowest KL. A student with given layers is unchanged."""

    Options = ProbeOptions

    def units(self, request: StageRequest) -> int:
        return int(request.options.tokens)

    def work(self, request: StageRequest, *, student: float, teacher: float) -> float:
        """The teacher once, and for every site the layers from the replaced one on, half of them on average, and the
        head, which is about a fifth of a small model."""
        return teacher + len(request.sites) * 0.6 * student

    def run(self, context: StageContext) -> StageOutcome:
        wanted = context.options.tokens
        student = context.student
        if not isinstance(student, RecurrentStudent):
            raise UsageError(
                f"stage kind kl_probe supports only students with recurrent mixers, got a {type(student).__name__}"
            )
        if student.count is None:
            return StageOutcome(metrics={"open_layers": 0.0})
        probe = _LayerKL(context, student)
        stream = context.batches()
        with torch.no_grad():
            while probe.tokens < wanted:
                batch = next(stream)
                for sample in batch.split(len(batch)):
                    probe.measure(sample, wanted)
        by_layer = {layer: total / probe.tokens for layer, total in probe.totals.items()}
        chosen = sorted(sorted(by_layer, key=lambda layer: by_layer[layer])[: student.count])
        context.log(1, **{f"site.blocks.{layer}.kl": kl for layer, kl in by_layer.items()})
        return StageOutcome(
            metrics={
                "tokens": float(probe.tokens),
                "kl_chosen_mean": sum(by_layer[layer] for layer in chosen) / len(chosen),
                "kl_all_mean": sum(by_layer.values()) / len(by_layer),
            },
            decisions={"layers": chosen},
            per_site={"kl": {f"blocks.{layer}": kl for layer, kl in by_layer.items()}},
        )


class _LayerKL:
    """Sums over tokens of KL(teacher ‖ student) with one layer replaced, in nats."""

    def __init__(self, context: StageContext, student: RecurrentStudent) -> None:
        if context.teacher is None:
            raise UsageError("stage kind kl_probe needs a teacher, but this run has none")
        self.context, self.student, self.teacher = context, student, context.teacher
        self.totals = dict.fromkeys(student.open_layers, 0.0)
        self.tokens = 0

    def measure(self, sample: Batch, wanted: int) -> None:
        """Measure one sample. Layers before the replaced one equal the teacher's, so they run only once."""
        inputs = {f"blocks.{layer}.input" for layer in self.totals}
        given = self.teacher.collect(sample.seen_by("teacher"), inputs | {"logits"})
        teacher: FactoredLogits = given["logits"]
        seen = sample.seen_by("student")
        kept = dict.fromkeys(self.totals, ATTENTION)
        finals: dict[int, FactoredLogits] = {}
        for layer in self.totals:
            values: dict[str, Any] = {}
            start = (layer, given[f"blocks.{layer}.input"])
            active = {**kept, layer: self.student.mixer(layer).kind}
            self.student.run(seen, {"logits"}, values.__setitem__, start=start, active=active)
            finals[layer] = values["logits"]
            done = self.tokens * len(self.totals) + sample.units * len(finals)
            self.context.progress(min(done, wanted * len(self.totals)), wanted * len(self.totals), f"blocks.{layer}")
        for where, z_TV in teacher.chunks():
            log_p_TV = F.log_softmax(z_TV, -1)
            for layer, logits in finals.items():
                self.totals[layer] += _kl(log_p_TV, logits, where)
        self.tokens += teacher.x_BLD.shape[:-1].numel()


def _kl(log_p_TV: Tensor, student: FactoredLogits, where: slice) -> float:
    log_q_TV = F.log_softmax(student.of(student.x_BLD.flatten(0, -2)[where]), -1)
    return float(F.kl_div(log_q_TV, log_p_TV, reduction="sum", log_target=True))
