"""Batch step ``on-policy``: rows that go on with the student's own words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.plugins.decoder.decoder_models import tiny_facts
from xarch import Batch, StepContext
from xarch_decoder.model.attention import Attention
from xarch_decoder.on_policy import OnPolicy
from xarch_decoder.student import DecoderStudent


@pytest.fixture(scope="module")
def student() -> DecoderStudent:
    torch.manual_seed(0)
    made = DecoderStudent(tiny_facts(), [[Attention], [Attention]])
    for parameter in made.module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.module.eval()
    return made


def tokens(rows: int = 4, **more: torch.Tensor) -> Batch:
    ids = torch.randint(3, 61, (rows, 12), generator=torch.Generator().manual_seed(1))
    return Batch({"input_ids": ids, **more}, rows * 12)


def run(student: DecoderStudent, batch: Batch, seed: int = 0, **options: Any) -> tuple[Batch, dict[str, float]]:
    logged: dict[str, float] = {}
    context = StepContext(student, None, generator=torch.Generator().manual_seed(seed), log=logged.update)
    with torch.no_grad():
        return OnPolicy(OnPolicy.Options.model_validate(options), {})(batch, context), logged


def test_the_likeliest_continuation_is_that_of_the_whole_student(student: DecoderStudent) -> None:
    found, logged = run(student, tokens(), prompt=0.5, top_k=1)
    ids = found["input_ids"]
    assert torch.equal(ids[:, :6], tokens()["input_ids"][:, :6])
    with torch.no_grad():
        logits = student.collect(Batch({"input_ids": ids}, 48), {"logits"})["logits"].full()
    assert torch.equal(ids[:, 6:], logits[:, 5:-1].argmax(-1))
    assert logged["sampled"] == 4 * 6


def test_masks_say_which_positions_predict_what(student: DecoderStudent) -> None:
    mask = torch.ones(4, 12)
    mask[:, -1] = 0
    found, _ = run(student, tokens(loss_mask=mask), share=0.5, prompt=0.5, tokens=3)
    drawn = found["sampled_mask"].sum(1) > 0
    assert 0 < int(drawn.sum()) < 4
    want = torch.zeros(4, 12)
    want[drawn, 5:8] = 1
    assert torch.equal(found["sampled_mask"], want)
    assert torch.equal(found["gold_mask"], mask * ~drawn[:, None])
    assert torch.equal(found["kd_mask"], want + mask * ~drawn[:, None])
    assert torch.equal(found["input_ids"][~drawn], tokens()["input_ids"][~drawn])
    assert torch.equal(found["input_ids"][:, 9:], tokens()["input_ids"][:, 9:])


def test_only_the_copies_of_repeat_are_sampled(student: DecoderStudent) -> None:
    """Encdec W7: the teacher judges samples, the labels are those of the data, in one forward pass."""
    batch = tokens(kd_mask=torch.tensor([0.0, 0.0, 1.0, 1.0]))
    found, _ = run(student, batch, rows="kd_mask")
    assert torch.equal(found["input_ids"][:2], batch["input_ids"][:2])
    assert found["gold_mask"].sum(1).tolist() == [12, 12, 0, 0]
    assert found["kd_mask"].sum(1).tolist() == [0, 0, 6, 6]


def test_the_same_draw_gives_the_same_tokens(student: DecoderStudent) -> None:
    a, b, c = (run(student, tokens(), seed)[0]["input_ids"] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_sample_goes_on_with_the_document_of_its_prompt(student: DecoderStudent) -> None:
    segments = torch.tensor([[0] * 3 + [1] * 5 + [2] * 4] * 4)
    found, _ = run(student, tokens(segment_ids=segments), prompt=0.5, top_k=1)
    assert found["segment_ids"].tolist() == [[0] * 3 + [1] * 9] * 4
    read = {"input_ids": found["input_ids"], "segment_ids": found["segment_ids"]}
    with torch.no_grad():
        logits = student.collect(Batch(read, 48), {"logits"})["logits"].full()
    assert torch.equal(found["input_ids"][:, 6:], logits[:, 5:-1].argmax(-1))


def test_rare_words_are_left_out(student: DecoderStudent) -> None:
    found, _ = run(student, tokens(), top_k=2, temperature=5.0)
    with torch.no_grad():
        logits = student.collect(Batch({"input_ids": found["input_ids"]}, 48), {"logits"})["logits"].full()
    two = logits[:, 5:-1].topk(2).indices
    assert bool((two == found["input_ids"][:, 6:, None]).any(-1).all())


def test_its_cost_is_that_of_reading_every_prefix() -> None:
    step = OnPolicy(OnPolicy.Options.model_validate({"share": 0.5, "prompt": 0.5, "tokens": 2}), {})
    assert step.work({"length": 8}, student=10.0, teacher=99.0) == 0.5 * 10.0 * (4 + 5) / 8
