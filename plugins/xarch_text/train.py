"""Training stream: endless, shuffled, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xarch import Batch, BatchStream, UsageError
from xarch_text.encoding import Encoder
from xarch_text.library import Library, Piece
from xarch_text.packing import Row, to_batch
from xarch_text.tally import Tally
from xarch_text.walk import START, Walk

PATIENCE = 100_000
"""Number of consecutive documents without tokens before an error is raised."""


@dataclass(slots=True)
class _Lane:
    """A piece being read: its position, its tokens, and how many of them are consumed."""

    place: dict[str, Any]
    piece: Piece
    ids: list[int]
    used: int = 0


class TrainStream(BatchStream):
    """Reads several documents in parallel and takes rows from them in turn, each continuing where its last row ended.

    The position is the place of every open piece and the number of tokens consumed from it, so resuming tokenizes only
    these pieces.

    Args:
        library: the training documents.
        encoder: encoder of pieces.
        samples: rows per batch.
        length: tokens per row.
        seed: determines the order of the documents.
    """

    def __init__(self, library: Library, encoder: Encoder, *, samples: int, length: int, seed: int) -> None:
        self.library, self.encoder, self.samples, self.length = library, encoder, samples, length
        self.tally = Tally(library.options.skip_limit)
        self.walk = Walk(library, seed)
        self._pieces = self.walk.pieces(START, self.tally)
        self._last: dict[str, Any] | None = None
        self._lanes: list[_Lane | None] = [None] * library.options.interleave
        self._turn = 0

    def __next__(self) -> Batch:
        rows = [self._row() for _ in range(self.samples)]
        batch = to_batch(rows, cross_documents=self.library.options.cross_documents)
        self.tally.add("tokens", batch.units)
        return batch

    def _row(self) -> Row:
        row = Row(self.length)
        turn = self._turn % len(self._lanes)
        lane = self._lanes[turn]
        while not row.full:
            fresh = False
            if lane is None or lane.used == len(lane.ids):
                before = lane.piece.document if lane else None
                lane = self._lanes[turn] = self._next_lane()
                # The rest of a long document may continue in another lane, where it starts without context.
                fresh = lane.piece.first or lane.piece.document != before
            lane.used = row.add(lane.ids, lane.used, lane.piece.document, new_document=fresh)
        self._turn = (turn + 1) % len(self._lanes)
        return row

    def _next_lane(self) -> _Lane:
        for _ in range(PATIENCE):
            self._last, piece = next(self._pieces)
            ids = self.encoder(piece)
            if ids:
                return _Lane(self._last, piece, ids)
        raise UsageError(f"{PATIENCE} consecutive documents produced no tokens", "check the data and the tokenizer")

    def state_dict(self) -> dict[str, Any]:
        return {
            "last": self._last,
            "turn": self._turn,
            "lanes": [None if lane is None else {"place": lane.place, "used": lane.used} for lane in self._lanes],
            "tally": self.tally.state(),
            "corpus": self.library.corpus.digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a saved position.

        Raises:
            UsageError: the files differ from those for which the position was saved.
        """
        if state["corpus"] != self.library.corpus.digest:
            raise UsageError(
                f"{self.library.corpus.title}: names or sizes of the files changed since the checkpoint",
                "restore the data, or start a new run",
            )
        self._last, self._turn = state["last"], state["turn"]
        self._lanes = [None if lane is None else self._reopened(lane) for lane in state["lanes"]]
        self._pieces = self._after(self._last)
        self.tally.restore(state["tally"])

    def _reopened(self, saved: Mapping[str, Any]) -> _Lane:
        place, piece = next(self.walk.pieces(saved["place"], Tally(1.0)))
        return _Lane(place, piece, self.encoder(piece), saved["used"])

    def _after(self, place: dict[str, Any] | None) -> Iterator[tuple[dict[str, Any], Piece]]:
        pieces = self.walk.pieces(place or START, self.tally)
        if place is not None:
            next(pieces)
        return pieces

    def counters(self) -> dict[str, int]:
        return dict(self.tally.counts)
