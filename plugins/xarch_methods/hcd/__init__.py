"""Heterogeneous complementary distillation: shared logits in several parts."""

from __future__ import annotations

from typing import Any


def register(registry: Any) -> None:
    """Register the objective; nothing is imported."""
    registry.objective(
        "hcd",
        load=f"{__name__}.shared:HCD",
        compares="features with what a classifier reads, its logits, and labels",
        units="nats",
        paper="arXiv:2511.10942",
        summary="shared logits of both sides' features, in parts",
    )
