"""Documents of one split, read file by file from any position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from xarch_text.corpus import Corpus, TextFile
from xarch_text.options import ReadingOptions, TextOptions
from xarch_text.reading import can_seek, cut_text, pieces_of
from xarch_text.records import records_of
from xarch_text.split import Splitter
from xarch_text.tally import Tally, Unreadable

BLOCK_CHARS = 1 << 23
"""Size limit of a block, even if it has fewer than ``shuffle_records`` documents."""

FEW_FILES = 50


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document that is tokenized at once.

    Attributes:
        document: identity of the document.
        text: the text.
        first, last: whether it is the first and last piece of the document.
    """

    document: str
    text: str
    first: bool
    last: bool


@dataclass(frozen=True)
class Block:
    """Consecutive pieces of a file that are shuffled together.

    Attributes:
        start: position in the file at which the block begins.
        pieces: pieces of each document in the block.
    """

    start: dict[str, int]
    documents: list[list[Piece]]


class Documents(ABC):
    """What one split holds, read block by block.

    Args:
        corpus: its files.
        reading: which of them are read, and how.
        split: one of :data:`SPLITS`.

    Attributes:
        files: those that hold documents of the split.
    """

    files: list[TextFile]

    def __init__(self, corpus: Corpus, reading: ReadingOptions, split: str) -> None:
        self.corpus, self.reading, self.split = corpus, reading, split
        self.splitter = Splitter(reading.validation, reading.heldout, reading.calibration)

    @property
    def bytes(self) -> int:
        """Return the size of the files that are read for this split."""
        return sum(f.bytes for f in self.files)

    @abstractmethod
    def blocks(self, file: TextFile, tally: Tally, start: Mapping[str, int] | None = None) -> Iterator[Block]:
        """Yield the blocks of a file from a block's ``start``; unreadable parts are counted in ``tally``."""


class Library(Documents):
    """Documents that are texts."""

    def __init__(self, corpus: Corpus, options: TextOptions, split: str) -> None:
        super().__init__(corpus, options, split)
        self.options = options
        whole = [f for f in corpus.files if not f.holds_records]
        few = len(whole) == len(corpus.files) < FEW_FILES
        self.by_piece = options.split_by == "piece" or (options.split_by == "auto" and few)
        chosen = {} if self.by_piece else self.splitter.documents([f.name for f in whole])
        self.files = [f for f in corpus.files if chosen.get(f.name, split) == split]

    def piece_chars(self, file: TextFile) -> int:
        """Return the characters per piece; a file divided among splits has at least a few dozen pieces unless tiny."""
        most = self.options.max_document_chars
        return max(1024, min(most, file.bytes // 64)) if self.by_piece else most

    def blocks(self, file: TextFile, tally: Tally, start: Mapping[str, int] | None = None) -> Iterator[Block]:
        return (self._record_blocks if file.holds_records else self._text_blocks)(file, tally, start)

    def _text_blocks(self, file: TextFile, tally: Tally, start: Mapping[str, int] | None) -> Iterator[Block]:
        begin = dict(start or {"piece": 0, "at": 0})
        skipped = 0 if can_seek(file) else begin["piece"]
        found = Readable(islice(pieces_of(file, self.piece_chars(file), begin["at"]), skipped, None))
        documents: list[list[Piece]] = []
        chars = 0
        for number, (text, after, last) in enumerate(found, start=begin["piece"]):
            if not self.by_piece:
                if number == 0:
                    tally.read()
                documents.append([Piece(file.name, text, number == 0, last)])
            elif self.splitter.piece(file.name, number) == self.split and not text.isspace():
                tally.read()
                documents.append([Piece(f"{file.name}#{number}", text, True, True)])
                chars += len(text)
            full = number + 1 - begin["piece"] == self.options.shuffle_records
            if full or chars > BLOCK_CHARS or not self.by_piece:
                yield Block(begin, documents)
                begin, documents, chars = {"piece": number + 1, "at": after}, [], 0
        yield Block(begin, documents)
        found.report(file, tally)

    def _record_blocks(self, file: TextFile, tally: Tally, start: Mapping[str, int] | None) -> Iterator[Block]:
        begin = dict(start or {"record": 0, "at": 0})
        documents: list[list[Piece]] = []
        chars = 0

        def wanted(number: int) -> bool:
            return self.splitter.document(f"{file.name}#{number}") == self.split

        found = Readable(records_of(file, self.options.field, wanted, begin))
        for record in found:
            if record.problem:
                tally.skip(record.problem, f"{file.name} record {record.number + 1}")
            elif record.text is not None:
                tally.read()
                documents.append(self._cut(f"{file.name}#{record.number}", record.text))
                chars += len(record.text)
            full = record.number + 1 - begin["record"] == self.options.shuffle_records
            if full or chars > BLOCK_CHARS:
                yield Block(begin, documents)
                begin, documents, chars = record.after, [], 0
        yield Block(begin, documents)
        found.report(file, tally)

    def _cut(self, name: str, text: str) -> list[Piece]:
        parts = cut_text(text, self.options.max_document_chars)
        return [Piece(name, part, i == 0, i == len(parts) - 1) for i, part in enumerate(parts)]


T = TypeVar("T")


class Readable(Iterator[T]):
    """Iterator over the readable part of a file; stops where the file is damaged."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._problem: Unreadable | None = None

    def __next__(self) -> T:
        try:
            return next(self._source)
        except Unreadable as problem:
            self._problem = problem
            raise StopIteration from None

    def report(self, file: TextFile, tally: Tally) -> None:
        """Count the damage, if any."""
        if self._problem is not None:
            tally.damaged(self._problem, file.name, file.bytes)
