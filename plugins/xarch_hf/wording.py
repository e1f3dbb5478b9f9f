"""Short texts for errors."""

from __future__ import annotations


def few(names: list[str], most: int = 8) -> str:
    """At most ``most`` names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def brief(error: BaseException, limit: int = 400) -> str:
    """Type and first lines of an error that another library raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:limit] if lines else type(error).__name__
