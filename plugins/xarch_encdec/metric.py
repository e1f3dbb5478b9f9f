"""Metric ``answers``: what a student thinks of held-out answers, and what it answers itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field

from xarch import Batch, Evaluation, EvaluationRequest, Metric, Options, TapModel, UsageError
from xarch_decoder.scores import Scores, add_batch
from xarch_encdec.generation import answers

SAMPLES = 2
"""Pairs shown in the report."""

UNITS = {
    "nll": "nats/token",
    "kl": "nats/token",
    "kl_stderr": "nats/token",
    "top1_agreement": "share",
    "top1_accuracy": "share",
}

DIRECTIONS = {"kl": False, "top1_agreement": True, "top1_accuracy": True}


class AnswersOptions(Options):
    """Options of ``answers``."""

    tokens: int = Field(32, ge=1, le=1 << 16, description="most tokens of the answers shown in the report")


class Answers(Metric):
    """Evaluates teacher and students on the same held-out pairs, at the tokens of the answers alone.

    Figures: ``nll`` (negative log-likelihood, nats/token) and ``top1_accuracy`` of every model; of a student also
    ``kl`` (KL(teacher || student), nats/token) with ``kl_stderr`` (over pairs) and ``top1_agreement`` (share of tokens
    where both prefer the same). ``n`` is the number of tokens. Answers written by teacher and student go into the
    report.
    """

    Options = AnswersOptions
    figures = tuple(UNITS)

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """See :meth:`xarch.Metric.evaluate`.

        Raises:
            UsageError: there is no held-out answer.
            NotFiniteError: a model's distributions are not finite.
        """
        teacher, students = request.teacher, request.students
        scores = {name: Scores() for name in (*(["teacher"] if teacher is not None else []), *students)}
        shown: Batch | None = None
        with torch.no_grad():
            for batch in request.batches():
                seen = batch.seen_by("student")
                known = teacher.collect(batch.seen_by("teacher"), ["logits"])["logits"] if teacher is not None else None
                found = {name: model.collect(seen, ["logits"])["logits"] for name, model in students.items()}
                add_batch(answers_of(seen), known, found, scores)
                shown = seen if shown is None else shown
                request.progress(batch.units)
            tokens = max((score.tokens for score in scores.values()), default=0)
            if not tokens or shown is None:
                raise UsageError("no held-out answers to evaluate on", "raise evaluate.samples or data.options.heldout")
            samples = _samples(teacher, students.get("student"), shown, request) if request.wants_samples else []
        figures = {name: compared(scores[name], scores.get("teacher")) for name in students}
        student = figures.pop("student", {})
        return Evaluation(
            metric="nll",
            higher_is_better=False,
            unit=UNITS["nll"],
            teacher=alone(scores["teacher"]) if teacher is not None else {},
            student=student,
            baselines=figures,
            gated={k: student[k] for k in ("kl", "top1_agreement") if k in student},
            units=UNITS,
            directions=DIRECTIONS,
            n=tokens,
            samples=samples,
        )


def answers_of(batch: Batch) -> Batch:
    """Return the decoder tokens as a row whose next tokens are predicted."""
    tensors = {"input_ids": batch["decoder_input_ids"]}
    mask_BT = batch.get("answer_mask")
    return Batch(tensors if mask_BT is None else {**tensors, "loss_mask": mask_BT}, batch.units)


def alone(score: Scores) -> dict[str, float]:
    """Return the figures of a model by itself."""
    return {"nll": score.cross_entropy, "top1_accuracy": score.hits / score.tokens}


def compared(score: Scores, teacher: Scores | None) -> dict[str, float]:
    """Return the figures of a student, with those that compare it with its teacher if there is one."""
    figures = alone(score)
    if teacher is None:
        return figures
    figures["kl"] = score.kl
    # eval.json holds only finite numbers; a single pair has no standard error.
    if math.isfinite(score.kl_stderr):
        figures["kl_stderr"] = score.kl_stderr
    figures["top1_agreement"] = score.agree / score.tokens
    return figures


def _samples(
    teacher: TapModel | None, student: TapModel | None, batch: Batch, request: EvaluationRequest
) -> list[dict[str, Any]]:
    processor = request.processor
    if processor is None or student is None:
        return []
    few = batch.narrow(0, min(SAMPLES, len(batch)))
    models = {"teacher": teacher, "student": student}
    ends = set(getattr(student.facts, "eos", ()))
    made = {n: answers(m, few, request.options.tokens, ends) for n, m in models.items() if m is not None}
    samples = []
    for i in range(len(few)):
        source = few["input_ids"][i][few["attention_mask"][i] > 0].tolist()
        start, *answer = few["decoder_input_ids"][i].tolist()
        counted = few.get("answer_mask")
        answer = answer if counted is None else answer[: int(counted[i].sum())]
        samples.append(
            {
                "prompt": str(processor.decode([*source, start])),
                "reference": str(processor.decode([token for token in answer if token not in ends])),
                **{name: _told(processor, each[i], request.options.tokens) for name, each in made.items()},
            }
        )
    return samples


def _told(processor: Any, ids: list[int], most: int) -> str:
    """Return a written answer as text, with dots where it was cut."""
    return str(processor.decode(ids)) + (" \N{HORIZONTAL ELLIPSIS}" if len(ids) == most else "")
