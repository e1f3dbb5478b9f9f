"""Metric ``recall``: what a model still knows of its text, by distance."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import torch
from pydantic import Field, model_validator
from torch import Tensor

from xarch import Batch, Evaluation, EvaluationRequest, Metric, Options, TapModel, UsageError
from xarch_text.planted import Planted, apart, fitting, plant

KNOWN = 0.5
"""Share of answers that the teacher must know for a probe to count."""

Hits = dict[tuple[str, int], list[int]]


class RecallOptions(Options):
    """Options of ``recall``."""

    distances: list[int] = Field(
        [64, 256, 512, 1024, 2048, 4096], min_length=1, description="tokens back to the source"
    )
    probes: int = Field(2, ge=1, le=64, description="of each kind, a distance and row")
    seed: int = Field(0, ge=0, description="of the tokens to recall")

    @model_validator(mode="after")
    def _apart(self) -> RecallOptions:
        least, given = apart(self.probes), sorted(self.distances)
        if given[0] < least // 2 or any(b - a < least for a, b in pairwise(given)):
            raise ValueError(
                f"distances {given}: with {self.probes} probes the first has to be at least {least // 2} tokens, "
                f"and each {least} more than the one before"
            )
        return self


class Recall(Metric):
    """Plants probes in held-out rows: at the end of each, passages of its own (``copy``) and random tokens
    (``recall``) are asked for that stand a distance back; accuracy over the answers' tokens.

    Figures: ``recall``, the mean over the distances of ``recall.DISTANCE``; ``copy.DISTANCE``. Probes that the teacher
    itself fails are left out, of every model; if it fails all of them, or without a teacher, all are given. Only
    distances that fit the rows are measured. ``n`` counts answers' tokens. Document boundaries are ignored.
    """

    Options = RecallOptions
    figures = ("recall", "copy.*", "recall.*")

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """See :meth:`xarch.Metric.evaluate`.

        Raises:
            UsageError: no distance fits the rows.
        """
        models = {**({"teacher": request.teacher} if request.teacher is not None else {}), **request.students}
        options: RecallOptions = request.options
        generator = torch.Generator().manual_seed(options.seed)
        hits: dict[str, Hits] = {name: defaultdict(lambda: [0, 0]) for name in models}
        with torch.no_grad():
            for batch in request.batches():
                ids_BL = batch.seen_by("student")["input_ids"]
                distances = fitting(options.distances, ids_BL.shape[1], options.probes)
                if distances:
                    planted = plant(ids_BL, distances, options.probes, generator)
                    for name, model in models.items():
                        _count(model, planted, hits[name])
                request.progress(batch.units)
        accuracy = {name: {probe: right / asked for probe, (right, asked) in of.items()} for name, of in hits.items()}
        first = next(iter(accuracy.values()), {})
        if not first:
            raise UsageError(
                f"no distance of {options.distances} fits the held-out rows",
                "raise evaluate.sample.length or lower evaluate.metric_options.distances",
            )
        known = {probe for probe, share in accuracy.get("teacher", {}).items() if share >= KNOWN}
        shown = known if any(kind == "recall" for kind, _ in known) else set(first)
        figures = {name: _figures(of, shown) for name, of in accuracy.items()}
        names = [name for name in next(iter(figures.values())) if name != "recall"]
        return Evaluation(
            metric="recall",
            higher_is_better=True,
            unit="share",
            teacher=figures.pop("teacher", {}),
            student=figures.pop("student", {}),
            baselines=figures,
            units=dict.fromkeys(names, "share"),
            directions=dict.fromkeys(names, True),
            n=sum(asked for probe, (_, asked) in next(iter(hits.values())).items() if probe in shown),
        )


def _count(model: TapModel, planted: Planted, hits: Hits) -> None:
    ids_BL = planted.ids_BL
    logits = model.collect(Batch({"input_ids": ids_BL}, ids_BL.numel()), ["logits"])["logits"]
    for probe, places_P in planted.places.items():
        at_P = places_P.to(ids_BL.device)
        said_BP: Tensor = logits.of(logits.x_BLD[:, at_P]).argmax(-1)
        hits[probe][0] += int((said_BP == ids_BL[:, at_P + 1]).sum())
        hits[probe][1] += said_BP.numel()


def _figures(accuracy: dict[tuple[str, int], float], shown: set[tuple[str, int]]) -> dict[str, float]:
    found = {f"{kind}.{distance}": accuracy[kind, distance] for kind, distance in sorted(shown)}
    recalled = [share for name, share in found.items() if name.startswith("recall.")]
    return {"recall": sum(recalled) / len(recalled), **found}
