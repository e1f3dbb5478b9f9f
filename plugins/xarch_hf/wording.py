"""Formatting of names and exceptions in error messages."""

from __future__ import annotations


def few(names: list[str], most: int = 8) -> str:
    """List at most ``most`` names and the number of further ones."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def brief(error: BaseException, limit: int = 400) -> str:
    """Return the type and first lines of an exception raised by another library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:limit] if lines else type(error).__name__
