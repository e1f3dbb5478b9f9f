"""Counts what was read and what had to be skipped; too much skipping is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch import UsageError

PATIENCE = 50
"""Documents seen before the limit is enforced in the middle of a pass; at its end it always is."""


class Unreadable(Exception):
    """A document that cannot be used; the message is the reason's key, e.g. "not_utf8"."""


class Tally:
    """Counters of one stream.

    Args:
        limit: largest share of skipped documents.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.counts: dict[str, int] = {"read": 0}
        self.examples: list[str] = []

    def read(self) -> None:
        """A document was read."""
        self.counts["read"] += 1

    def skip(self, reason: str, where: str) -> None:
        """A document was skipped.

        Raises:
            UsageError: too many were.
        """
        key = f"skipped_{reason}"
        self.counts[key] = self.counts.get(key, 0) + 1
        if len(self.examples) < 3:
            self.examples.append(f"{where} ({reason.replace('_', ' ')})")
        if self.seen >= PATIENCE:
            self.check()

    def add(self, key: str, amount: int) -> None:
        """Count something else."""
        self.counts[key] = self.counts.get(key, 0) + amount

    @property
    def skipped(self) -> int:
        """Documents skipped so far."""
        return sum(v for k, v in self.counts.items() if k.startswith("skipped_"))

    @property
    def seen(self) -> int:
        """Documents read or skipped so far."""
        return self.counts["read"] + self.skipped

    def check(self) -> None:
        """Enforce the limit.

        Raises:
            UsageError: more than the limit was skipped; names the first three.
        """
        if self.skipped > self.limit * self.seen:
            raise UsageError(
                f"{self.skipped} of {self.seen} documents cannot be used, more than the limit of "
                f"{self.limit:.0%}; the first: {'; '.join(self.examples)}",
                "remove them, or raise `--set data.options.skip_limit=...`",
            )

    def state(self) -> dict[str, Any]:
        """JSON-able copy."""
        return {"counts": dict(self.counts), "examples": list(self.examples)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a copy."""
        self.counts, self.examples = dict(state["counts"]), list(state["examples"])
