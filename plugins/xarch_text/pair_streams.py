"""Streams of pairs: endless and shuffled for training, finite and in order for everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

from xarch import Batch, BatchStream, UsageError
from xarch_text.bridge import BridgedEncoder
from xarch_text.pair_encoding import PairEncoder, Tokens, to_batch
from xarch_text.pair_library import Pair, PairLibrary
from xarch_text.tally import Tally
from xarch_text.walk import START, Walk

PATIENCE = 100_000
"""Number of consecutive pairs without tokens before an error is raised."""


class PairStream(BatchStream):
    """Base of both.

    Args:
        library: the pairs of the split.
        encoder: encoder of pairs.
        samples: pairs per batch.
        units: budget units per pair.
        joined: whether batches also hold what a decoder reads.
    """

    def __init__(
        self, library: PairLibrary, encoder: PairEncoder | BridgedEncoder, *, samples: int, units: int, joined: bool
    ) -> None:
        self.library, self.encoder, self.samples, self.units, self.joined = library, encoder, samples, units, joined
        self.tally = Tally(library.reading.skip_limit)

    def _batch(self, rows: list[Tokens]) -> Batch:
        self.tally.add("tokens", sum(len(r.source) + len(r.decoder) for r in rows))
        batch = to_batch(rows, len(rows) * self.units, joined=self.joined)
        return self.encoder.bridged(batch, rows) if isinstance(self.encoder, BridgedEncoder) else batch

    def counters(self) -> dict[str, int]:
        return dict(self.tally.counts)

    def _check(self, state: Mapping[str, Any]) -> None:
        """Check that a position is one of these files.

        Raises:
            UsageError: it is not.
        """
        if state["corpus"] != self.library.corpus.digest:
            raise UsageError(
                f"{self.library.corpus.title}: names or sizes of the files changed since the checkpoint",
                "restore the data, or start a new run",
            )


class TrainPairs(PairStream):
    """Endless pairs in an order determined by a seed; the position is the place of the last one."""

    def __init__(self, *args: Any, seed: int, **known: Any) -> None:
        super().__init__(*args, **known)
        self.walk = Walk(self.library, seed)
        self._pairs = self.walk.pieces(START, self.tally)
        self._last: dict[str, Any] | None = None

    def __next__(self) -> Batch:
        return self._batch([self._row() for _ in range(self.samples)])

    def _row(self) -> Tokens:
        for _ in range(PATIENCE):
            self._last, pair = next(self._pairs)
            row = self.encoder(cast(Pair, pair), self.tally)
            if row is not None:
                return row
        raise UsageError(f"{PATIENCE} consecutive pairs produced no tokens", "check the data and the tokenizer")

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last, "tally": self.tally.state(), "corpus": self.library.corpus.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check(state)
        self._last = state["last"]
        self._pairs = self.walk.pieces(self._last or START, self.tally)
        if self._last is not None:
            next(self._pairs)
        self.tally.restore(state["tally"])


class FixedPairs(PairStream):
    """Every pair of the split once, in the order of the files."""

    def __init__(self, *args: Any, **known: Any) -> None:
        super().__init__(*args, **known)
        self._begin()

    def _begin(self) -> None:
        self.tally = Tally(self.library.reading.skip_limit)
        self._rows, self._given = self._tokens(), 0

    def _tokens(self) -> Iterator[Tokens]:
        for file in self.library.files:
            for block in self.library.blocks(file, self.tally):
                for [pair] in block.documents:
                    row = self.encoder(cast(Pair, pair), self.tally)
                    if row is not None:
                        yield row
        self.tally.end_pass(self.library.bytes)

    def __next__(self) -> Batch:
        rows = list(islice(self._rows, self.samples))
        if not rows:
            if not self._given:
                split = self.library.split
                raise UsageError(
                    f"{self.library.corpus.title} has no pair in the split {split!r}",
                    f"provide more pairs, or raise `--set data.options.{split}=...`",
                )
            raise StopIteration
        self._given += len(rows)
        return self._batch(rows)

    def state_dict(self) -> dict[str, Any]:
        return {"given": self._given, "corpus": self.library.corpus.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check(state)
        self._begin()
        for _ in range(state["given"]):
            next(self._rows)
        self._given = state["given"]
