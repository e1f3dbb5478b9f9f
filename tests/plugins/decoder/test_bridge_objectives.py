"""Losses between two vocabularies: zero for the same model, right by hand, and blind to pads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xarch import Batch, MatchContext, Tap
from xarch_decoder.bridge import ULD, VocabMap
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.objectives import Chunked


def made(kind: type, own: int = 6, other: int = 4, chunk: int = 2) -> Any:
    taps = (Tap("logits", "logits", "factored-logits", {"V": v}) for v in (own, other))
    return kind(*taps, Chunked(chunk=chunk), MatchContext())


def logits(rows: int, tokens: int, vocab: int, seed: int) -> FactoredLogits:
    draw = torch.Generator().manual_seed(seed)
    x, w = torch.randn(rows, tokens, 5, generator=draw), torch.randn(vocab, 5, generator=draw)
    return FactoredLogits(x.requires_grad_(), w)


OWN = torch.tensor([[0, 2, 3], [1, 0, 0]])
THEIRS = torch.tensor([[1, 2, 4], [0, 0, 0]])
MASK = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
BATCH = Batch({"x": MASK}, 2)


def value(kind: type, student: Any, teacher: Any, mask: torch.Tensor = MASK, **aux: Any) -> torch.Tensor:
    loss: torch.Tensor = made(kind)(student, teacher, BATCH, mask=mask, own=OWN, theirs=THEIRS, **aux)
    return loss


def test_uld_is_the_distance_of_sorted_probabilities() -> None:
    student, teacher = logits(2, 4, 6, 0), logits(2, 5, 4, 1)
    p, q = student.full().softmax(-1), teacher.full().softmax(-1)

    def by_hand(b: int, t: int, k: int) -> torch.Tensor:
        mine = p[b, t].sort(descending=True).values
        theirs = torch.cat([q[b, k].sort(descending=True).values, torch.zeros(2)])
        return (mine - theirs).abs().sum()

    wanted = [by_hand(0, 0, 1) + by_hand(0, 2, 2) + by_hand(0, 3, 4), by_hand(1, 1, 0)]
    assert torch.allclose(value(ULD, student, teacher), torch.stack(wanted), atol=1e-6)
    assert made(ULD).weight(BATCH, mask=MASK).tolist() == [3, 1]


def test_vocab_map_is_the_divergence_over_common_tokens_and_the_rest() -> None:
    student, teacher = logits(2, 4, 6, 0), logits(2, 5, 4, 1)
    words = torch.tensor([[2, -1, 0, -1, -1, -1]]).expand(2, -1)
    p, q = teacher.full().softmax(-1), student.full().softmax(-1)

    def by_hand(b: int, t: int, k: int) -> torch.Tensor:
        mine = torch.stack([q[b, t, 0], q[b, t, 2], 1 - q[b, t, 0] - q[b, t, 2]])
        theirs = torch.stack([p[b, k, 2], p[b, k, 0], 1 - p[b, k, 2] - p[b, k, 0]])
        return (theirs * (theirs / mine).log()).sum()

    wanted = [by_hand(0, 0, 1) + by_hand(0, 2, 2) + by_hand(0, 3, 4), by_hand(1, 1, 0)]
    assert torch.allclose(value(VocabMap, student, teacher, words=words), torch.stack(wanted), atol=1e-5)


@pytest.mark.parametrize("kind", [ULD, VocabMap])
def test_the_same_model_costs_nothing_and_pads_change_nothing(kind: type) -> None:
    student, teacher = logits(2, 5, 6, 0), logits(2, 5, 6, 0)
    aux = {"words": torch.arange(6).expand(2, -1)} if kind is VocabMap else {}
    same: torch.Tensor = made(kind)(student, teacher, BATCH, mask=MASK, own=OWN, theirs=OWN, **aux)
    assert same.abs().max() < 1e-5
    other = logits(2, 5, 6, 3)
    loss = value(kind, student, other, **aux)
    loss.sum().backward()
    touched = student.x_BLD.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[True, False, True, True, False], [False, True, False, False, False]]
    wider = {"mask": torch.nn.functional.pad(MASK, (0, 2)), "own": torch.nn.functional.pad(OWN, (0, 2))}
    wider["theirs"] = torch.nn.functional.pad(THEIRS, (0, 2))
    assert torch.allclose(made(kind)(student, other, BATCH, **wider, **aux), loss)
    nothing = made(kind)(student, other, BATCH, mask=MASK * 0, own=OWN, theirs=THEIRS, **aux)
    assert nothing.tolist() == [0, 0]


def test_without_a_mask_pads_cannot_be_told() -> None:
    with pytest.raises(ValueError, match="needs a mask"):
        made(ULD).weight(BATCH)
