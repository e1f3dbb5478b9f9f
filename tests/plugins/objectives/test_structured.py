"""Objectives on logits that a family keeps as factors: opened where needed, labels as the family counts them."""

from __future__ import annotations

import torch

from xarch import Batch, MatchContext, Tap
from xarch.registry.loader import get_registry
from xarch_decoder.factored import FactoredLogits

INFO = {"dense": "BLV", "ahead": 1, "segments": "segment_ids"}
FACTORED, DENSE = Tap("logits", "logits", "factored-logits", {"V": 7}, INFO), Tap("logits", "logits", "BLV", {"V": 7})


def factored(seed: int) -> FactoredLogits:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, 5, 4, generator=generator), torch.randn(7, 4, generator=generator)
    return FactoredLogits(x, weight)


def made(name: str, tap: Tap):  # type: ignore[no-untyped-def]
    registry = get_registry()
    kind = registry.resolve(registry.get("objective", name, "BLV"))
    assert kind.takes(tap, tap)
    assert kind.check(tap, tap) is None
    return kind(tap, tap, kind.Options(), MatchContext("m")).eval()


def test_dense_objectives_open_what_has_a_dense_form() -> None:
    batch, mask = Batch({"x": torch.zeros(2, 5)}, 10), torch.tensor([[1.0, 1, 0, 1, 1], [0, 0, 1, 1, 1]])
    for name in ("mse", "cosine", "correlation", "logit-std", "dist", "taid"):
        want = made(name, DENSE)(factored(0).full(), factored(1).full(), batch, mask=mask)
        torch.testing.assert_close(made(name, FACTORED)(factored(0), factored(1), batch, mask=mask), want)


def test_a_form_that_cannot_be_opened_is_refused() -> None:
    registry = get_registry()
    closed = Tap("logits", "logits", "factored-logits", {"V": 7})
    for name in ("mse", "dkd", "dist"):
        assert not registry.resolve(registry.get("objective", name, "BLV")).takes(closed, closed)


def test_labels_are_the_next_tokens_of_the_same_text() -> None:
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 0, 1, 2, 3]])
    segments = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    batch = Batch({"input_ids": tokens, "segment_ids": segments}, 10)
    labels = torch.tensor([[2, -100, 4, 5, -100], [0, 1, 2, 3, -100]])
    got = made("dkd", FACTORED)(factored(0), factored(1), batch, labels=tokens)
    want = made("dkd", DENSE)(factored(0).full(), factored(1).full(), batch, labels=labels)
    torch.testing.assert_close(got, want)
    assert bool((got > 0).all())
