"""The plan ``drop``: decoder layers that cost least to leave out are dropped by a stage before training."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.plugins.encdec.encdec_models import FACTS, decoder, logits, pairs, student_of
from xarch import PlanError, Teacher
from xarch_encdec.drop import DropLayers
from xarch_encdec.options import EncDecOptions
from xarch_encdec.student import EncDecStudent
from xarch_encdec.target import EncDecTarget
from xarch_encdec.teacher import AnswerView


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Five layers, of which the second does nothing and the fourth almost nothing."""
    made = decoder(replace(FACTS, layers=5))
    with torch.no_grad():
        for layer, share in ((1, 0.0), (3, 0.01)):
            block = made.student.decoder.block(layer)
            for weight in (block.mixer().o.weight, block.mlp.down.weight):
                weight.mul_(share)
    return made


def dropped(teacher: Teacher, student: EncDecStudent) -> Any:
    view, tokens = AnswerView(teacher), list[int]()

    def batches() -> Any:
        for seed in range(9):
            yield pairs(seed)

    context = SimpleNamespace(
        student=student,
        teacher=view,
        options=DropLayers.Options(tokens=9),
        batches=batches,
        run_teacher=lambda batch, wanted, sink: view.run(batch.seen_by("teacher"), wanted, sink),
        progress=lambda done, total, what: tokens.append(done),
    )
    outcome = DropLayers().run(context)  # type: ignore[arg-type]
    student.decide(outcome.decisions)
    return outcome


def test_layers_that_do_nothing_are_dropped_and_the_rest_is_the_teacher(teacher: Teacher) -> None:
    student = student_of(teacher, plan="drop", encoder=5, decoder=3, mask="causal", memory="layers", share=True)
    outcome = dropped(teacher, student)
    assert outcome.decisions == {"decoder": [0, 2, 4]}
    assert list(outcome.per_site["kl_without"]) == ["decoder.1", "decoder.3"], "not in the order of their costs"
    assert 0 < outcome.metrics["kl"] < 0.05
    batch = pairs(11)
    known, found = logits(AnswerView(teacher), batch.seen_by("teacher")), logits(student, batch.seen_by("student"))
    counted = batch["answer_mask"] > 0
    assert (known.argmax(-1) == found.argmax(-1))[counted].float().mean() > 0.9
    assert student.facts.decoder == len(student.module.decoder) == 3
    assert student.places == {0: 0, 1: 2, 2: 4}
    assert set(student.taps()) == set(student.collect(batch.seen_by("student"), student.taps()))


def test_a_saved_student_is_built_with_the_decision(teacher: Teacher) -> None:
    options = EncDecOptions(plan="drop", encoder=3, decoder=2)
    student = student_of(teacher, **options.model_dump(exclude_unset=True))
    decisions = dropped(teacher, student).decisions
    again = EncDecTarget().build(teacher.facts, options, decisions, device=torch.device("cpu"))
    again.module.load_state_dict(student.module.state_dict(), strict=True)
    again.module.eval()
    assert again.facts == student.facts
    assert again.keep is None
    batch = pairs().seen_by("student")
    assert torch.equal(logits(again, batch), logits(student, batch))


def test_given_layers_stay_as_they_are(teacher: Teacher) -> None:
    student = student_of(teacher, plan="split", encoder=3, decoder=2)
    assert dropped(teacher, student).decisions == {}
    assert student.facts.decoder == 2


def test_wrong_decisions_and_counts_are_refused(teacher: Teacher) -> None:
    student = student_of(teacher, plan="drop", encoder=3, decoder=2)
    with pytest.raises(ValueError, match="decoder's layers"):
        student.decide({"decoder": [0, 7]})
    with pytest.raises(PlanError, match="no stage chose 2 of 5"):
        student.finish()
    with pytest.raises(PlanError, match="6 layers"):
        student_of(teacher, plan="drop", decoder=6)
    assert EncDecTarget().recipe(teacher.facts, EncDecOptions(plan="drop")) == "encdec-drop"
