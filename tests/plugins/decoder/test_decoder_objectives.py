"""Chunked vocabulary losses against the whole tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from xarch import Batch, MatchContext, Objective, Tap
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.objectives import KL, CrossEntropy, HardLabel

TAP = Tap("logits", "logits", "factored-logits", {"V": 11})
TOKENS = Tap("input_ids", "data", "BL")


def _made(
    kind: type[Objective], right: Any = TAP, weights: dict[str, float] | None = None, **options: Any
) -> Objective:
    return kind(TAP, right, kind.Options.model_validate(options), MatchContext("m", weights=weights or {}))


def _logits(seed: int, *, head: bool = False, softcap: float | None = None) -> FactoredLogits:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 7, 5, generator=g, dtype=torch.float64).float().requires_grad_()
    w = torch.randn(11, 5, generator=g).requires_grad_(head)
    return FactoredLogits(x, w, softcap=softcap)


def _batch() -> Batch:
    return Batch({"input_ids": torch.arange(14).view(2, 7) % 11}, 14)


@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_value_and_gradients(chunk: int, head: bool, softcap: float | None, temperature: float) -> None:
    student, teacher = _logits(0, head=head, softcap=softcap), _logits(1)
    loss = _made(KL, chunk=chunk, temperature=temperature)(student, teacher, _batch())
    loss.sum().backward()
    got = [student.x_BLD.grad.clone(), student.weight_VD.grad]
    student.x_BLD.grad = None
    if head:
        got[1] = got[1].clone()
        student.weight_VD.grad = None
    p = F.log_softmax(teacher.full().detach() / temperature, -1)
    q = F.log_softmax(student.full() / temperature, -1)
    want = (p.exp() * (p - q)).sum(-1).mean(1) * temperature**2
    want.sum().backward()
    assert torch.allclose(loss, want, rtol=1e-5, atol=1e-6)
    assert torch.allclose(got[0], student.x_BLD.grad, rtol=1e-4, atol=1e-6)
    if head:
        assert torch.allclose(got[1], student.weight_VD.grad, rtol=1e-4, atol=1e-6)


def test_kl_is_zero_for_the_teacher_itself() -> None:
    teacher = _logits(1)
    assert float(_made(KL)(teacher, teacher, _batch()).detach().abs().max()) < 1e-6


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("direction", ["reverse", "js"])
def test_other_directions_are_those_of_whole_logits(direction: str, head: bool) -> None:
    from xarch.matching.objectives.distributions import KL as Whole

    student, teacher = _logits(0, head=head), _logits(1)
    loss = _made(KL, chunk=4, direction=direction, temperature=2.0)(student, teacher, _batch())
    loss.sum().backward()
    got = student.x_BLD.grad.clone()
    student.x_BLD.grad = None
    dense = Tap("logits", "logits", "BLV", {"V": 11})
    options = Whole.Options.model_validate({"direction": direction, "temperature": 2.0})
    whole = Whole(dense, dense, options, MatchContext("m"))(student.full(), teacher.full().detach(), _batch())
    whole.sum().backward()
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(got, student.x_BLD.grad)


@pytest.mark.parametrize("head", [False, True])
def test_several_teachers_are_averaged_as_probabilities(head: bool) -> None:
    student, teachers = _logits(0, head=head), {"a": _logits(1), "b": _logits(2)}
    objective = _made(KL, {"a": TAP, "b": TAP}, {"a": 3.0, "b": 1.0}, chunk=4)
    loss = objective(student, teachers, _batch())
    mean = 0.75 * teachers["a"].full().softmax(-1) + 0.25 * teachers["b"].full().softmax(-1)
    want = (mean * (mean.log() - student.full().log_softmax(-1))).sum(-1).mean(1)
    torch.testing.assert_close(loss, want)


@pytest.mark.parametrize("layout", ["B", "BL"])
def test_masked_tokens_do_not_count(layout: str) -> None:
    mask = torch.tensor([1.0, 0.0])
    if layout == "BL":
        mask = torch.zeros(2, 7)
        mask[:, 3] = 1
        mask[0, 5] = 1
    objective, student, teacher = _made(KL, chunk=3), _logits(0), _logits(1)
    assert type(objective).masks(TAP, layout)
    loss = objective(student, teacher, _batch(), mask=mask).sum() / objective.weight(_batch(), mask=mask).sum()
    p, q = F.log_softmax(teacher.full(), -1), F.log_softmax(student.full(), -1)
    torch.testing.assert_close(loss, (p.exp() * (p - q)).sum(-1)[mask > 0].mean())


def _per_token(objective: Objective, student: Any, right: Any, batch: Batch, mask: Any = None) -> torch.Tensor:
    return objective(student, right, batch, mask=mask).sum() / objective.weight(batch, right, mask=mask).sum()


def test_cross_entropy_ignores_the_next_document() -> None:
    ids = _batch()["input_ids"]
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0] * 7])
    batch = Batch({"input_ids": ids, "segment_ids": segments}, 14)
    student = _logits(0)
    each = F.cross_entropy(student.full()[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(2, 6)
    keep = segments[:, 1:] == segments[:, :-1]
    objective = _made(CrossEntropy, TOKENS, chunk=3)
    torch.testing.assert_close(_per_token(objective, student, ids, batch), each[keep].mean())
    mask = torch.zeros(2, 7)
    mask[:, 1:4] = 1
    keep &= mask[:, :-1] > 0
    torch.testing.assert_close(_per_token(objective, student, ids, batch, mask), each[keep].mean())


def test_labels_may_stand_at_their_own_position() -> None:
    ids = _batch()["input_ids"].clone()
    ids[0, :2] = -100
    student, objective = _logits(0), _made(CrossEntropy, TOKENS, ahead=0, smoothing=0.1)
    want = F.cross_entropy(student.full().flatten(0, 1), ids.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(_per_token(objective, student, ids, _batch()), want)


def test_hard_labels_are_the_teachers_likeliest_tokens() -> None:
    student, teacher = _logits(0), _logits(1)
    want = F.cross_entropy(student.full().flatten(0, 1), teacher.full().argmax(-1).flatten())
    torch.testing.assert_close(_per_token(_made(HardLabel, chunk=4), student, teacher, _batch()), want)
