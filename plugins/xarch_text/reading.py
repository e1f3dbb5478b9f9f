"""Reader of single-document files: decodes text, strips tags, cuts it into pieces."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from xarch import open_regular, too_dense
from xarch_text.corpus import TextFile
from xarch_text.html_text import without_tags
from xarch_text.kinds import MAYBE_RECORDS, UTF_16, looks_like_records, named
from xarch_text.tally import Unreadable

CHUNK = 1 << 16


class Unpacked(gzip.GzipFile):
    """The content of a gzip file, which ends in :class:`Unreadable` where it is out of proportion to the file."""

    def __init__(self, path: Path) -> None:
        with open_regular(path) as packed:
            self.packed = packed.seek(0, 2)
        super().__init__(path, "rb")

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(size))

    def readline(self, size: int | None = -1) -> bytes:
        return self._checked(super().readline(size))

    def _checked(self, data: bytes) -> bytes:
        if too_dense(self.packed, self.tell()):
            raise Unreadable("corrupt", "gzip that unpacks out of all proportion")
        return data


@contextlib.contextmanager
def opened(file: TextFile) -> Iterator[BinaryIO]:
    """Open the decompressed content of a file.

    Raises:
        Unreadable: it cannot be opened, or data read inside the block is damaged.
    """
    try:
        with Unpacked(file.path) if file.compressed else open_regular(file.path) as stream:
            yield stream  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise Unreadable("corrupt") from e
    except UnicodeDecodeError as e:
        raise Unreadable("not_utf8") from e
    except OSError as e:
        raise Unreadable("unreadable") from e


def pieces_of(file: TextFile, limit: int, start_byte: int = 0) -> Iterator[tuple[str, int, bool]]:
    """Yield (text, byte position after it, whether it is the last) for every piece of a document.

    Positions can be passed as ``start_byte`` later; they are 0 for compressed files and HTML, which are read from the
    beginning.

    Raises:
        Unreadable: the file is empty, binary, not UTF-8 or damaged.
    """
    seekable = can_seek(file)
    with opened(file) as stream:
        stream.seek(start_byte)
        chunks = _decoded(stream, fresh=start_byte == 0, prose=file.suffix in MAYBE_RECORDS and not file.as_text)
        if file.kind == "html":
            chunks = without_tags(chunks)
        at, any_text = start_byte, start_byte > 0
        for raw, last in _cut(chunks, limit):
            at += len(raw.encode("utf-8")) if seekable else 0
            any_text = any_text or not raw.isspace()
            if last and not any_text:
                break
            yield raw.replace("\r\n", "\n").removeprefix("\ufeff"), at, last
    if not any_text:
        raise Unreadable("empty")


def can_seek(file: TextFile) -> bool:
    """Return whether reading can start at a byte position from :func:`pieces_of`."""
    return not file.compressed and file.kind != "html"


def refuse_named(head: bytes) -> None:
    """Raise Unreadable if the first bytes are those of a known unsupported kind."""
    what = named(head)
    if what:
        raise Unreadable("not_utf8" if what == UTF_16 else "binary", what)


def cut_text(text: str, limit: int) -> list[str]:
    """Cut a text into pieces of at most ``limit`` characters, at line ends or spaces where possible."""
    return [piece for piece, _ in _cut(iter((text,)), limit)]


def _decoded(stream: BinaryIO, *, fresh: bool, prose: bool) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    first = fresh
    while chunk := stream.read(CHUNK):
        if first:
            refuse_named(chunk)
            if b"\0" in chunk:
                raise Unreadable("binary")
            if prose and looks_like_records(chunk):
                raise Unreadable("json", "records in JSON, for data.options.read_as=records")
        first = False
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _cut(chunks: Iterator[str], limit: int) -> Iterator[tuple[str, bool]]:
    """Yield (piece, whether it is the last); nothing for an empty text."""
    held = ""
    for chunk in chunks:
        held += chunk
        while len(held) > limit:
            at = _cut_point(held, limit)
            yield held[:at], False
            held = held[at:]
    if held:
        yield held, True


def _cut_point(text: str, limit: int) -> int:
    for mark in ("\n", " "):
        found = text.rfind(mark, limit // 2, limit)
        if found > 0:
            return found + 1
    return limit
