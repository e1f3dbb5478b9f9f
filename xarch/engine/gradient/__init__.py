"""Stage kind ``gradient``. It uses what is public of a stage (``xarch.StageContext``) and nothing else."""

from __future__ import annotations

from xarch.engine.gradient.loop import Gradient

__all__ = ["Gradient"]
