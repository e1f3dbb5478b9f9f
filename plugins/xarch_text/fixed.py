"""Held-out and validation streams: a finite, fixed set of windows spread over the documents."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from xarch import Batch, BatchStream, UsageError
from xarch_text.encoding import Encoder
from xarch_text.library import Library, Piece
from xarch_text.packing import Row, to_batch
from xarch_text.split import fraction_of
from xarch_text.tally import Tally

WAVE_DOCUMENTS = 512
WAVE_TOKENS = 1 << 22
DOCUMENT_TOKENS = 1 << 16
"""Maximum tokens of one document from which windows are taken."""


class FixedStream(BatchStream):
    """Takes one window of every document, then a second one of each, and so on.

    Each full window is a separate row at a position derived from the document's name, so that rows are not only
    beginnings. Documents shorter than a row are packed together. Nothing depends on a seed.

    Args:
        library: the documents of the split.
        encoder: encoder of pieces.
        samples: rows per batch.
        length: tokens per row.
    """

    def __init__(self, library: Library, encoder: Encoder, *, samples: int, length: int) -> None:
        self.library, self.encoder, self.samples, self.length = library, encoder, samples, length
        self._begin()

    def _begin(self) -> None:
        self.tally = Tally(self.library.options.skip_limit)
        self._rows = self._windows()
        self._given = 0

    def __next__(self) -> Batch:
        rows = list(islice(self._rows, self.samples))
        if not rows:
            if not self._given:
                self._nothing()
            raise StopIteration
        self._given += len(rows)
        batch = to_batch(rows, cross_documents=self.library.options.cross_documents)
        self.tally.add("tokens", batch.units)
        return batch

    def _nothing(self) -> None:
        split = self.library.split
        raise UsageError(
            f"{self.library.corpus.title}: the {split} documents do not fill one row of {self.length} tokens",
            f"provide more text, raise `--set data.options.{split}=...`, or use shorter samples",
        )

    def _windows(self) -> Iterator[Row]:
        short = Row(self.length)
        for wave in self._waves():
            held: list[tuple[str, list[int], list[int]]] = []
            for name, ids in wave:
                if len(ids) < self.length:
                    used = short.add(ids, 0, name, new_document=True)
                    if short.full:
                        yield short
                        short = Row(self.length)
                        short.add(ids, used, name, new_document=True)
                    continue
                order = list(range(len(ids) // self.length))
                random.Random(name).shuffle(order)
                held.append((name, ids, order))
                yield self._window(name, ids, order.pop())
            while held:
                held = [h for h in held if h[2]]
                for name, ids, order in held:
                    yield self._window(name, ids, order.pop())
        self.tally.end_pass(self.library.bytes)

    def _window(self, name: str, ids: list[int], number: int) -> Row:
        row = Row(self.length)
        row.add(ids, number * self.length, name, new_document=True)
        return row

    def _waves(self) -> Iterator[Iterator[tuple[str, list[int]]]]:
        """Yield groups of documents of bounded memory; a document is read only when it is reached."""
        documents = self._documents()
        ended = False

        def wave() -> Iterator[tuple[str, list[int]]]:
            nonlocal ended
            tokens = 0
            for _ in range(WAVE_DOCUMENTS):
                found = next(documents, None)
                if found is None:
                    ended = True
                    return
                yield found
                tokens += len(found[1])
                if tokens > WAVE_TOKENS:
                    return

        while not ended:
            yield wave()

    def _documents(self) -> Iterator[tuple[str, list[int]]]:
        name = ""
        ids: list[int] = []
        for piece in self._pieces():
            if piece.first:
                if ids:
                    yield name, ids
                name, ids = piece.document, []
            if len(ids) < DOCUMENT_TOKENS:
                ids += self.encoder(piece)
        if ids:
            yield name, ids

    def _pieces(self) -> Iterator[Piece]:
        for file in sorted(self.library.files, key=lambda f: (fraction_of(f"order {f.name}"), f.name)):
            for block in self.library.blocks(file, self.tally):
                for document in block.documents:
                    yield from document

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._begin()
        for _ in range(state["rows"]):
            next(self._rows)
        self._given = state["rows"]

    def counters(self) -> dict[str, int]:
        return dict(self.tally.counts)
