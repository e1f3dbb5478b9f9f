"""OFA-KD: exits from every stage of the student to the teacher's logits."""

from __future__ import annotations

from typing import Any


def register(registry: Any) -> None:
    """Register the exits; nothing is imported."""
    summary = "the exits of OFA-KD: separable convolutions, or patch merging and attention, then classes"
    registry.connector("ofa-exit", load=f"{__name__}.exits:OFAExit", summary=summary)
