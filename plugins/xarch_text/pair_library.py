"""Pairs of a source and a target text, as records of JSON lines, JSON arrays and Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xarch_text.corpus import Corpus, TextFile
from xarch_text.library import BLOCK_CHARS, Block, Documents, Piece, Readable
from xarch_text.options import ReadingOptions
from xarch_text.records import Record, Wanted, records_of
from xarch_text.tally import Tally


@dataclass(frozen=True, slots=True)
class Pair(Piece):
    """A source, whose text is ``text``, with its target."""

    target: str


class PairLibrary(Documents):
    """The pairs of one split; which split a pair is in depends on its number in its file.

    Args:
        corpus: files of records.
        reading: how they are divided among splits.
        split: one of the splits.
        source, target: keys of the two texts (``a.b`` for nested ones), or columns.
    """

    def __init__(self, corpus: Corpus, reading: ReadingOptions, split: str, *, source: str, target: str) -> None:
        super().__init__(corpus, reading, split)
        self.source, self.target, self.files = source, target, list(corpus.files)

    def blocks(self, file: TextFile, tally: Tally, start: Mapping[str, int] | None = None) -> Iterator[Block]:
        begin = dict(start or {"record": 0, "at": 0})
        documents: list[list[Piece]] = []
        chars = 0

        def wanted(number: int) -> bool:
            return self.splitter.document(f"{file.name}#{number}") == self.split

        found = Readable(self._records(file, wanted, begin))
        for source, target in found:
            problem = source.problem or target.problem
            if problem:
                tally.skip(problem, f"{file.name} record {source.number + 1}")
            elif source.text is not None and target.text is not None:
                tally.read()
                pair = Pair(f"{file.name}#{source.number}", source.text, True, True, target.text)
                documents.append([pair])
                chars += len(pair.text) + len(pair.target)
            full = source.number + 1 - begin["record"] == self.reading.shuffle_records
            if full or chars > BLOCK_CHARS:
                yield Block(begin, documents)
                begin, documents, chars = source.after, [], 0
        yield Block(begin, documents)
        found.report(file, tally)

    def _records(self, file: TextFile, wanted: Wanted, start: Mapping[str, int]) -> Iterator[tuple[Record, Record]]:
        """Yield the records of both fields; a file is read by two readers that stay at the same record."""
        sides = (records_of(file, field, wanted, start) for field in (self.source, self.target))
        return zip(*sides, strict=True)
