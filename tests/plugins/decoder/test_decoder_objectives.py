"""Chunked vocabulary losses against the whole tensor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from xarch import Batch, Tap
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.objectives import KL, CrossEntropy

TAP = Tap("logits", "logits", "factored-logits", {"V": 11})


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
    loss = KL(TAP, TAP, {"chunk": chunk, "temperature": temperature})(student, teacher, _batch())
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
    assert float(KL(TAP, TAP, {})(teacher, teacher, _batch()).detach().abs().max()) < 1e-6


def test_masked_tokens_do_not_count() -> None:
    mask = torch.zeros(2, 7)
    mask[:, 3] = 1
    batch = Batch({"input_ids": _batch()["input_ids"], "loss_mask": mask}, 14)
    objective = KL(TAP, TAP, {})
    student, teacher = _logits(0), _logits(1)
    whole = objective(student, teacher, batch) / objective.weight(batch)
    p, q = F.log_softmax(teacher.full(), -1), F.log_softmax(student.full(), -1)
    assert torch.allclose(whole, (p.exp() * (p - q)).sum(-1)[:, 3], rtol=1e-5, atol=1e-6)


def test_cross_entropy_ignores_the_next_document() -> None:
    ids = _batch()["input_ids"]
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0] * 7])
    batch = Batch({"input_ids": ids, "segment_ids": segments}, 14)
    student = _logits(0)
    got = CrossEntropy(TAP, Tap("input_ids", "data", "batch"), {"chunk": 3})(student, ids, batch)
    each = F.cross_entropy(student.full()[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(2, 6)
    keep = segments[:, 1:] == segments[:, :-1]
    assert torch.allclose(got, (each * keep).sum(1) / keep.sum(1), rtol=1e-5)
