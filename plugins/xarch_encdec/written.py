"""Metric ``written-answers``: what models answer themselves, beside what they think of the data's answers."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import torch
from pydantic import Field

from xarch import Batch, Evaluation, EvaluationRequest, TapModel
from xarch_encdec.generation import answers
from xarch_encdec.metric import Answers, AnswersOptions

WORDS = re.compile(r"\w+")


class WrittenOptions(AnswersOptions):
    """Options of ``written-answers``."""

    pairs: int = Field(32, ge=1, le=1 << 20, description="held-out pairs whose answers every model writes")


class WrittenAnswers(Answers):
    """Adds to :class:`Answers` how near the answers that teacher, student and controls write are to the data's:
    ``exact_match`` (share of answers that are the same text) and ``rouge_l`` (F-measure of the longest common
    subsequence of words, mean over pairs; rouge-score). Without a tokenizer, tokens are the words.

    Writing is greedy, with caches, and takes far longer than judging, so it stops after ``pairs`` pairs.
    """

    Options = WrittenOptions
    figures = (*Answers.figures, "exact_match", "rouge_l")

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        found = super().evaluate(request)
        models = {**({} if request.teacher is None else {"teacher": request.teacher}), **request.students}
        made = _written(models, request)
        for name, figures in (("teacher", found.teacher), ("student", found.student), *found.baselines.items()):
            if name in made:
                figures.update(made[name])
        found.units.update(exact_match="share", rouge_l="share")
        found.directions.update(exact_match=True, rouge_l=True)
        return found


def _written(models: dict[str, TapModel], request: EvaluationRequest) -> dict[str, dict[str, float]]:
    texts: dict[str, list[str]] = {name: [] for name in models}
    references: list[str] = []
    with torch.no_grad():
        for batch in request.batches():
            few = batch.seen_by("student")
            few = few.narrow(0, min(len(few), request.options.pairs - len(references)))
            ends = set(getattr(next(iter(models.values())).facts, "eos", ()))
            references += [_text(ids, request.processor) for ids in _references(few, ends)]
            for name, model in models.items():
                made = answers(model, few, request.options.tokens, ends)
                texts[name] += [_text(ids, request.processor) for ids in made]
            if len(references) == request.options.pairs:
                break
    return {name: _scores(references, own) for name, own in texts.items()}


def _references(batch: Batch, ends: Collection[int]) -> list[list[int]]:
    """Return the tokens of the data's answers without their end."""
    rows = []
    for ids_T, counted_T in zip(batch["decoder_input_ids"].tolist(), batch["answer_mask"].tolist(), strict=True):
        rows.append([token for token in islice(ids_T, 1, 1 + int(sum(counted_T))) if token not in ends])
    return rows


def _text(ids: Sequence[int], processor: Any) -> str:
    return " ".join(map(str, ids)) if processor is None else str(processor.decode(list(ids))).strip()


class _Words:
    """Splits at everything that is no letter or digit of any language; the library's own knows ASCII alone."""

    def tokenize(self, text: str) -> list[str]:
        return WORDS.findall(text.lower())


def _scores(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = list(zip(references, texts, strict=True))
    common = [float(scorer.score(reference, text)["rougeL"].fmeasure) for reference, text in pairs]
    return {
        "exact_match": sum(reference == text for reference, text in pairs) / len(pairs),
        "rouge_l": sum(common) / len(common),
    }
