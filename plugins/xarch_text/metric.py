"""Metric ``perplexity``: agreement of a student's predictions with its teacher's on held-out text."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from xarch import Batch, Evaluation, EvaluationRequest, Metric, TapModel, UsageError
from xarch_decoder.generation import continue_greedily
from xarch_decoder.scores import Scores, add_batch
from xarch_text.effort import EFFORT, ROWS, efforts

PROMPTS = 2
PROMPT_TOKENS = 24
NEW_TOKENS = 48
_EXPONENT = 700.0
"""Above this, exp overflows float64; such a model is reported with perplexity e^700."""


UNITS = {
    "cross_entropy": "nats/token",
    "kl": "nats/token",
    "kl_stderr": "nats/token",
    "perplexity_ratio": "× teacher",
    "top1_agreement": "share",
    "top1_accuracy": "share",
}

DOMAINS = ("code", "prose", "other")
"""Domains of documents, see :func:`xarch_decoder.domains.domain_of`."""

DIRECTIONS = {
    "cross_entropy": False,
    "kl": False,
    "perplexity_ratio": False,
    "top1_agreement": True,
    "top1_accuracy": True,
}


class Perplexity(Metric):
    """Evaluates teacher and students on the same held-out rows, one model at a time.

    Figures: ``perplexity`` and ``cross_entropy`` (nats/token) of every model; of a student also ``perplexity_ratio``
    (its perplexity over the teacher's), ``kl`` (KL(teacher || student), nats/token) with ``kl_stderr`` (over rows),
    ``top1_agreement`` (share of positions where both prefer the same token) and ``top1_accuracy``. Predictions across
    document boundaries are excluded. ``n`` is the number of predicted tokens. Where documents are of several domains
    ("code", "prose", "other"), every figure is also given for each of them, as ``kl.code``, with the number of its
    tokens.
    """

    figures = ("perplexity", *UNITS, *(f"{name}.*" for name in ("perplexity", "tokens", *UNITS)))

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """See :meth:`xarch.Metric.evaluate`.

        Raises:
            UsageError: there are no held-out tokens to predict.
            NotFiniteError: a model's distributions are not finite.
        """
        teacher, students = request.teacher, request.students
        scores = {name: Scores() for name in (*(["teacher"] if teacher is not None else []), *students)}
        prompts: list[Tensor] = []
        told: list[dict[str, Any]] = []
        with torch.no_grad():
            for batch in request.batches():
                seen = batch.seen_by("student")
                known = teacher.collect(batch.seen_by("teacher"), ["logits"])["logits"] if teacher is not None else None
                values = {name: model.collect(seen, _wanted(name, model)) for name, model in students.items()}
                found = {name: value["logits"] for name, value in values.items()}
                if EFFORT in values.get("student", {}) and request.processor is not None and request.wants_samples:
                    told += efforts(seen, values["student"][EFFORT], request.processor, ROWS - len(told))
                add_batch(seen, known, found, scores)
                prompts += _prompts(seen, PROMPTS - len(prompts)) if request.wants_samples else []
                request.progress(batch.units)
            tokens = max((score.tokens for score in scores.values()), default=0)
            if not tokens:
                raise UsageError("no held-out tokens to evaluate on", "raise evaluate.samples or data.options.heldout")
            samples = _samples(teacher, students.get("student"), prompts, request.processor)
        figures = {name: _with_parts(scores[name], scores.get("teacher")) for name in students}
        domains = sorted(next(iter(scores.values())).parts)
        several = domains if len(domains) > 1 else []
        student = figures.pop("student", {})
        return Evaluation(
            metric="perplexity",
            higher_is_better=False,
            unit="per token",
            teacher=_with_parts(scores["teacher"], None) if teacher is not None else {},
            student=student,
            baselines=figures,
            gated={k: student[k] for k in ("perplexity_ratio", "kl", "top1_agreement") if k in student},
            units={**UNITS, **{f"{name}.{d}": unit for d in several for name, unit in _PART_UNITS.items()}},
            directions={**DIRECTIONS, **{f"{name}.{d}": h for d in several for name, h in DIRECTIONS.items()}},
            n=tokens,
            samples=[*samples, *told],
        )


_PART_UNITS = {**UNITS, "perplexity": "per token", "tokens": "tokens"}


def _with_parts(score: Scores, teacher: Scores | None) -> dict[str, float]:
    """Figures of all text, and of each domain where there are several."""
    found = _figures(score, teacher)
    if len(score.parts) > 1:
        for domain, part in sorted(score.parts.items()):
            known = None if teacher is None else teacher.parts[domain]
            found |= {f"{name}.{domain}": value for name, value in _figures(part, known).items()} if part.tokens else {}
            found[f"tokens.{domain}"] = float(part.tokens)
    return found


def _alone(score: Scores) -> dict[str, float]:
    return {
        "perplexity": math.exp(min(score.cross_entropy, _EXPONENT)),
        "cross_entropy": score.cross_entropy,
        "top1_accuracy": score.hits / score.tokens,
    }


def _figures(score: Scores, teacher: Scores | None) -> dict[str, float]:
    figures = _alone(score)
    if teacher is None:
        return figures
    figures["perplexity_ratio"] = math.exp(min(score.cross_entropy - teacher.cross_entropy, _EXPONENT))
    figures["kl"] = score.kl
    # eval.json holds only finite numbers; a single row has no standard error.
    if math.isfinite(score.kl_stderr):
        figures["kl_stderr"] = score.kl_stderr
    figures["top1_agreement"] = score.agree / score.tokens
    return figures


def _wanted(name: str, model: TapModel) -> list[str]:
    return ["logits", EFFORT] if name == "student" and EFFORT in model.taps() else ["logits"]


def _prompts(batch: Batch, wanted: int) -> list[Tensor]:
    """Return prompts: beginnings of rows that lie within one document."""
    if wanted <= 0 or batch["input_ids"].shape[1] < PROMPT_TOKENS:
        return []
    ids_BL, segments_BL = batch["input_ids"], batch.get("segment_ids")
    whole = [i for i in range(len(batch)) if segments_BL is None or not segments_BL[i, :PROMPT_TOKENS].any()]
    return [ids_BL[i, :PROMPT_TOKENS] for i in whole[:wanted]]


def _samples(
    teacher: TapModel | None, student: TapModel | None, prompts: list[Tensor], processor: Any
) -> list[dict[str, Any]]:
    if not prompts or processor is None or student is None:
        return []
    prompt_BL = torch.stack(prompts)
    texts = [_text(processor, ids) for ids in prompt_BL]
    models = {"teacher": teacher, "student": student}
    answers = {n: continue_greedily(m, prompt_BL, NEW_TOKENS) for n, m in models.items() if m is not None}
    return [
        {"prompt": prompt, **{name: _text(processor, answer[i]) for name, answer in answers.items()}}
        for i, prompt in enumerate(texts)
    ]


def _text(processor: Any, ids_L: Tensor) -> str:
    """Decode text up to the end of the document, if the model ended it."""
    ids = ids_L.tolist()
    end = getattr(processor, "eos_token_id", None)
    if end in ids:
        ids = ids[: ids.index(end)]
    return str(processor.decode(ids))
