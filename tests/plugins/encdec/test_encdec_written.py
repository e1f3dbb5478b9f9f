"""Answers that models write themselves, measured against the data's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.plugins.encdec.encdec_models import EQUAL, decoder, pairs, student_of
from xarch import Batch, Evaluation, EvaluationRequest
from xarch_encdec.controls import cut_controls
from xarch_encdec.generation import answers
from xarch_encdec.teacher import AnswerView
from xarch_encdec.written import WrittenAnswers

pytestmark = pytest.mark.slow  # rouge-score imports nltk, which takes seconds


class Words:
    """Tokens as words of which the second half differ in case and punctuation alone."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"Wort\u00e4{chr(97 + i % 13)}," if i > 129 else f"wort\u00e4{chr(97 + i % 13)}" for i in ids)


def evaluated(batch: Batch, **options: Any) -> Evaluation:
    teacher = decoder()
    view, student = AnswerView(teacher), student_of(teacher, **EQUAL)
    controls = cut_controls(view, student_of(teacher, encoder=1, decoder=1))
    students = {"student": student, **{name: control.model for name, control in controls.items()}}
    metric = WrittenAnswers.Options(tokens=6, **options)
    request = EvaluationRequest(view, students, lambda: [batch], processor=Words(), options=metric)
    return WrittenAnswers().evaluate(request)


def with_answers(batch: Batch, rows: list[list[int]]) -> Batch:
    ids_BT = batch["decoder_input_ids"].clone()
    for i, row in enumerate(rows):
        ids_BT[i, 1 : 1 + len(row)] = torch.tensor(row)
    mask_BT = (torch.arange(ids_BT.shape[1]) < torch.tensor([[len(row)] for row in rows])).float()
    return batch.replace(decoder_input_ids=ids_BT, answer_mask=mask_BT)


def test_the_teachers_own_answers_as_the_data_are_matched_by_it_and_its_equal() -> None:
    teacher, batch = decoder(), pairs()
    own = answers(AnswerView(teacher), batch.seen_by("student"), 6, teacher.facts.eos)
    found = evaluated(with_answers(batch, own))
    for figures in (found.teacher, found.student):
        assert figures["exact_match"] == figures["rouge_l"] == 1.0
    for control in found.baselines.values():
        assert control["exact_match"] < 1
        assert control["rouge_l"] < 1
        assert set(control) >= set(found.teacher), "models have different figures"
    assert found.baselines


def test_one_answer_of_two_and_half_of_its_words() -> None:
    teacher, batch = decoder(), pairs()
    own = answers(AnswerView(teacher), batch.seen_by("student"), 6, teacher.facts.eos)
    spare = [token for token in range(13) if token not in {i % 13 for i in own[1]}][:3]
    swapped = [(token + 130) % 260 for token in own[1][:3]]  # the same words in the other case
    found = evaluated(with_answers(batch, [own[0], [*swapped, *spare], own[2]]), pairs=2)
    assert found.student["exact_match"] == 0.5
    assert found.student["rouge_l"] == pytest.approx((1 + 0.5) / 2)
