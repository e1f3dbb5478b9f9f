"""Stage kind ``gradient``. It uses only the public stage API (``xarch.StageContext``)."""

from __future__ import annotations

from xarch.engine.gradient.loop import Gradient

__all__ = ["Gradient"]
