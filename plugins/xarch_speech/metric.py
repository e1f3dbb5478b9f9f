"""Metric ``word-errors``: what models write of held-out recordings, and what they think of the texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, Evaluation, EvaluationRequest, Metric, Options, TapModel, UsageError
from xarch_decoder.scores import Scores, add_batch
from xarch_encdec.metric import DIRECTIONS, UNITS, alone, answers_of, compared
from xarch_speech.generation import transcripts
from xarch_speech.student import MEMORY, Running, same_encoder

SAMPLES = 4
"""Recordings whose transcripts the report shows."""


class WordErrorOptions(Options):
    """Options of ``word-errors``."""

    tokens: int = Field(64, ge=1, le=1 << 16, description="most tokens of a transcript")


class WordErrors(Metric):
    """Evaluates teacher and students on the same held-out recordings.

    Figures: ``wer``, word error rate of transcripts written greedily (substitutions, deletions and insertions over all
    words; jiwer, after transformers' normalisation of English: case, punctuation, contractions, numbers); and at the
    tokens of the text, as of the family encdec, ``nll`` and ``top1_accuracy``, of a student also ``kl``, ``kl_stderr``
    and ``top1_agreement``. ``n`` is the number of words.
    """

    Options = WordErrorOptions
    figures = ("wer", *UNITS)

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """See :meth:`xarch.Metric.evaluate`.

        Raises:
            UsageError: there is no held-out recording, or no tokenizer.
            NotFiniteError: a model's distributions are not finite.
        """
        if request.processor is None:
            raise UsageError("word-errors needs a tokenizer, and the model has none", "convert a teacher that has one")
        models = {**({} if request.teacher is None else {"teacher": request.teacher}), **request.students}
        scores, texts = {name: Scores() for name in models}, {name: list[str]() for name in models}
        references: list[str] = []
        with torch.no_grad():
            for batch in request.batches():
                references += [str(request.processor.decode(row)) for row in _written_in(batch.seen_by("student"))]
                found, heard = {}, list[tuple[Running, Tensor]]()
                for name, model in models.items():
                    seen = _heard(model, batch.seen_by("teacher" if name == "teacher" else "student"), heard)
                    found[name] = model.collect(seen, ["logits"])["logits"]
                    made = transcripts(model, seen, request.options.tokens)
                    texts[name] += [str(request.processor.decode(ids)) for ids in made]
                known = found.pop("teacher", None)
                add_batch(answers_of(batch.seen_by("student")), known, found, scores)
                request.progress(batch.units)
        if not references:
            raise UsageError("no held-out recordings to evaluate on", "raise evaluate.samples or data.options.heldout")
        wer = {name: word_error_rate(references, own) for name, own in texts.items()}
        figures = {
            name: {"wer": wer[name], **compared(scores[name], scores.get("teacher"))} for name in request.students
        }
        student = figures.pop("student", {})
        return Evaluation(
            metric="wer",
            higher_is_better=False,
            unit="share",
            teacher={"wer": wer["teacher"], **alone(scores["teacher"])} if "teacher" in scores else {},
            student=student,
            baselines=figures,
            gated={key: student[key] for key in ("kl", "top1_agreement") if key in student},
            units={**UNITS, "wer": "share"},
            directions={**DIRECTIONS, "nll": False},
            n=sum(len(_words(text)) for text in references),
            samples=[
                {"prompt": "(speech)", "reference": reference, **{name: texts[name][i] for name in _shown(texts)}}
                for i, reference in enumerate(islice(references, SAMPLES))
            ],
        )


def _heard(model: TapModel, batch: Batch, others: list[tuple[Running, Tensor]]) -> Batch:
    """Return a batch with what the model's encoder heard, so that it listens once, as do all with the same encoder.

    Args:
        others: models that listened to this batch, and what they heard; extended.
    """
    if not isinstance(model, Running):
        return batch
    memory_BSD = next((known for other, known in others if same_encoder(model, other)), None)
    if memory_BSD is None:
        memory_BSD = model.heard(batch)
        others.append((model, memory_BSD))
    return batch.replace(**{MEMORY: memory_BSD})


def _written_in(batch: Batch) -> list[list[int]]:
    """Return the tokens of the texts, those that begin and end them included."""
    counted = batch["answer_mask"] > 0
    return [ids_T[1:][mask_T[:-1]].tolist() for ids_T, mask_T in zip(batch["decoder_input_ids"], counted, strict=True)]


def _shown(texts: dict[str, list[str]]) -> list[str]:
    return [name for name in ("teacher", "student") if name in texts]


def word_error_rate(references: Sequence[str], texts: Sequence[str]) -> float:
    """Return substitutions, deletions and insertions per word of the references.

    Raises:
        UsageError: no reference has a word.
    """
    import jiwer

    pairs = [(" ".join(_words(a)), " ".join(_words(b))) for a, b in zip(references, texts, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    if not pairs:
        raise UsageError("no held-out text has a word")
    return float(jiwer.wer([a for a, _ in pairs], [b for _, b in pairs]))


def _words(text: str) -> list[str]:
    return str(_normalizer()(text)).split()


@functools.cache
def _normalizer() -> Any:
    """Return transformers' normalizer of English, which takes a moment to import."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})
