"""Stage kind ``kl_probe``: find the layers whose attention costs the least to replace.

Each undecided layer is replaced alone and KL(teacher ‖ student) is measured at the logits. Relative errors of the
mixers rank layers wrongly: the first layers fit best but cost the most. Every KL has a standard error over rows.

Legend: L tokens, D width, V vocabulary, T tokens in a chunk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Batch, Options, StageContext, StageKind, StageOutcome, StageRequest, UsageError
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.model.mixer import ATTENTION
from xarch_decoder.student import DecoderStudent


class ProbeOptions(Options):
    """Options of a ``kl_probe`` stage."""

    tokens: int = Field(1024, ge=1, le=10**12, description="number of training tokens to measure on")


class KLProbe(StageKind):
    """Decides ``layers``: the ``count`` layers with the lowest KL. A student with given layers is unchanged.

    Figures: ``ties``, the number of layers left that differ from the dearest chosen one by less than twice the standard
    error of their difference.
    """

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
        if not isinstance(student, DecoderStudent):
            raise UsageError(f"stage kind kl_probe supports only decoders, got a {type(student).__name__}")
        if student.count is None:
            return StageOutcome(metrics={"open_layers": 0.0})
        probe = _LayerKL(context, student)
        stream = context.batches()
        with torch.no_grad():
            while probe.tokens < wanted:
                batch = next(stream)
                for sample in batch.split(len(batch)):
                    probe.measure(sample, wanted)
        by_layer = {layer: sum(rows) / probe.tokens for layer, rows in probe.rows.items()}
        chosen = sorted(sorted(by_layer, key=lambda layer: by_layer[layer])[: student.count])
        context.log(1, **{f"site.blocks.{layer}.kl": kl for layer, kl in by_layer.items()})
        return StageOutcome(
            metrics={
                "tokens": float(probe.tokens),
                "kl_chosen_mean": sum(by_layer[layer] for layer in chosen) / len(chosen),
                "kl_all_mean": sum(by_layer.values()) / len(by_layer),
                "ties": float(probe.ties(max(chosen, key=lambda layer: by_layer[layer]), set(by_layer) - set(chosen))),
            },
            decisions={"layers": chosen},
            per_site={
                "kl": {f"blocks.{layer}": kl for layer, kl in by_layer.items()},
                "kl_stderr": {f"blocks.{layer}": error for layer, error in probe.errors().items()},
            },
        )


class _LayerKL:
    """Sums over the tokens of each row of KL(teacher ‖ student) with one layer replaced, in nats."""

    def __init__(self, context: StageContext, student: DecoderStudent) -> None:
        if context.teacher is None:
            raise UsageError("stage kind kl_probe needs a teacher, but this run has none")
        self.context, self.student, self.teacher = context, student, context.teacher
        self.rows: dict[int, list[float]] = {layer: [] for layer in student.open_layers}
        self.tokens, self.lengths = 0, list[int]()

    def measure(self, sample: Batch, wanted: int) -> None:
        """Measure one sample. Layers before the replaced one equal the teacher's, so they run only once."""
        inputs = {f"blocks.{layer}.input" for layer in self.rows}
        given = self.teacher.collect(sample.seen_by("teacher"), inputs | {"logits"})
        teacher: FactoredLogits = given["logits"]
        seen = sample.seen_by("student")
        kept: dict[int, str] = dict.fromkeys(self.rows, ATTENTION)
        finals: dict[int, FactoredLogits] = {}
        for layer in self.rows:
            values: dict[str, Any] = {}
            start = (layer, given[f"blocks.{layer}.input"])
            active = {**kept, layer: self.student.replacement(layer) or ATTENTION}
            self.student.run(seen, {"logits"}, values.__setitem__, start=start, active=active)
            finals[layer] = values["logits"]
            done = self.tokens * len(self.rows) + sample.units * len(finals)
            self.context.progress(min(done, wanted * len(self.rows)), wanted * len(self.rows), f"blocks.{layer}")
        for rows in self.rows.values():
            rows.append(0.0)
        for where, z_TV in teacher.chunks():
            log_p_TV = F.log_softmax(z_TV, -1)
            for layer, logits in finals.items():
                self.rows[layer][-1] += _kl(log_p_TV, logits, where)
        self.lengths.append(teacher.x_BLD.shape[:-1].numel())
        self.tokens += self.lengths[-1]

    def errors(self) -> dict[int, float]:
        """Return the standard errors of the mean KL over rows; none of a single row."""
        return {layer: self._error(rows) for layer, rows in self.rows.items()} if len(self.lengths) > 1 else {}

    def ties(self, chosen: int, left: set[int]) -> int:
        """Return how many layers left do not clearly cost more than a chosen one."""
        if len(self.lengths) < 2:
            return len(left)
        apart = {i: [a - b for a, b in zip(self.rows[i], self.rows[chosen], strict=True)] for i in left}
        return sum(sum(rows) / self.tokens < 2 * self._error(rows) for rows in apart.values())

    def _error(self, rows: list[float]) -> float:
        mean = sum(rows) / self.tokens
        spread = sum((row - mean * n) ** 2 for row, n in zip(rows, self.lengths, strict=True))
        return math.sqrt(spread * len(rows) / (len(rows) - 1)) / self.tokens


def _kl(log_p_TV: Tensor, student: FactoredLogits, where: slice) -> float:
    log_q_TV = F.log_softmax(student.of(student.x_BLD.flatten(0, -2)[where]), -1)
    return float(F.kl_div(log_q_TV, log_p_TV, reduction="sum", log_target=True))
