"""Counters of documents read and skipped; skipping too many is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch import UsageError

PATIENCE = 1000
"""Number of skipped documents in excess of the limit that stops a stream within a pass.

The share of a whole corpus is known only at the end of a pass, where the limit is enforced exactly. Before that, bad
documents may simply come first, so the stream stops only after a large excess.
"""


class Unreadable(Exception):
    """A document that cannot be used.

    Args:
        reason: its key among the counters, e.g. "not_utf8".
        detail: description for display, where the key is not sufficient.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail or reason.replace("_", " ")


class Tally:
    """Counters of one stream.

    Documents are counted as read or skipped when encountered, so that their share is always consistent. A damaged file
    counts as one skipped document regardless of its content, so its loss is also measured in bytes.

    Args:
        limit: maximum share of skipped documents, and of the bytes of damaged files.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.counts: dict[str, int] = {"read": 0}
        self.examples: list[str] = []
        self.lost_bytes = 0

    def read(self) -> None:
        """Count a document that was read."""
        self.counts["read"] += 1

    def damaged(self, problem: Unreadable, where: str, size: int) -> None:
        """Count a file that is unreadable, entirely or from some point on.

        Args:
            size: bytes of the file.

        Raises:
            UsageError: too many documents were skipped.
        """
        self.lost_bytes += size
        self.skip(problem.reason, where, problem.detail)

    def skip(self, reason: str, where: str, detail: str = "") -> None:
        """Count a skipped document.

        Raises:
            UsageError: too many documents were skipped.
        """
        key = f"skipped_{reason}"
        self.counts[key] = self.counts.get(key, 0) + 1
        if len(self.examples) < 3:
            self.examples.append(f"{where} ({detail or reason.replace('_', ' ')})")
        if self.skipped > self.limit * self.seen + PATIENCE:
            self._refuse(f"{self.skipped} of the first {self.seen} documents")

    def add(self, key: str, amount: int) -> None:
        """Increment another counter."""
        self.counts[key] = self.counts.get(key, 0) + amount

    @property
    def skipped(self) -> int:
        """Return the number of documents skipped so far."""
        return sum(v for k, v in self.counts.items() if k.startswith("skipped_"))

    @property
    def seen(self) -> int:
        """Return the number of documents read or skipped so far."""
        return self.counts["read"] + self.skipped

    def end_pass(self, total_bytes: int) -> None:
        """Enforce the limit at the end of a pass over all files.

        Args:
            total_bytes: size of all files.

        Raises:
            UsageError: more than the limit was skipped; names the first three documents.
        """
        lost, self.lost_bytes = self.lost_bytes, 0
        if self.skipped > self.limit * self.seen:
            self._refuse(f"{self.skipped} of {self.seen} documents")
        if lost > self.limit * total_bytes:
            self._refuse(f"files with {lost} of {total_bytes} bytes")

    def _refuse(self, what: str) -> None:
        raise UsageError(
            f"{what} cannot be used, more than the limit of {self.limit:.0%}; the first: {'; '.join(self.examples)}",
            "remove them, or raise `--set data.options.skip_limit=...`",
        )

    def state(self) -> dict[str, Any]:
        """Return a JSON-compatible copy."""
        return {"counts": dict(self.counts), "examples": list(self.examples), "lost_bytes": self.lost_bytes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a copy."""
        self.counts, self.examples = dict(state["counts"]), list(state["examples"])
        self.lost_bytes = state["lost_bytes"]
