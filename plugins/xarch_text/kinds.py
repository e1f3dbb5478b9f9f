"""What a file holds: by its extension where that says it, by its first bytes where it does not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Literal

Kind = Literal["text", "html", "json", "parquet"]
"""text: one document. html: one document with tags. json: records, one a line or in one array. parquet: records."""

HEAD = 1 << 16
"""First bytes of a file that are looked at."""

BY_SUFFIX: dict[str, Kind] = {
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
PROSE = frozenset((".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".py", ".pyi"))
"""Extensions of files that are one document. Those of code and markup may begin like a record and are none."""
MAYBE_RECORDS = (".txt", ".text")
"""Prose by its extension, in which records are found all the same."""

TABLES = {
    ".csv": "a table of comma-separated values",
    ".tsv": "a table of tab-separated values",
    ".xls": "a spreadsheet",
    ".xlsx": "a spreadsheet",
    ".ods": "a spreadsheet",
}
UTF_16 = "text in UTF-16, not UTF-8"
_MAGIC = {
    b"PAR1": "Parquet",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"\xfd7zXZ\0": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"\x04\x22\x4d\x18": "compressed with LZ4",
    b"PK\x03\x04": "a zip archive (perhaps .docx, .xlsx, .epub or .npz)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"%PDF": "a PDF document",
    b"{\\rtf": "a rich text document",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x7fELF": "a program",
    b"GGUF": "a GGUF model",
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
}


def kind_by_name(suffix: str) -> Kind | None:
    """What an extension (lower case, without .gz) says; None if it says nothing that is known here."""
    return "text" if suffix in PROSE else BY_SUFFIX.get(suffix)


def kind_by_content(path: Path, *, compressed: bool) -> tuple[Kind, str]:
    """(how a file is to be read, "") from its first bytes; for one that cannot be, ("text", what it is)."""
    try:
        with gzip.open(path, "rb") if compressed else open(path, "rb") as stream:
            head = stream.read(HEAD)
    except (OSError, EOFError, zlib.error):
        # Reading it for its text meets the same damage, where it is counted.
        return "text", ""
    if head.startswith(b"PAR1"):
        return "parquet", ""
    seen = named(head)
    if seen:
        return "text", seen
    return ("json" if looks_like_records(head) else "text"), ""


def named(head: bytes) -> str:
    """What a file that is no plain text calls itself in its first bytes; "" for none of the kinds known."""
    if b"ustar" in head[257:263]:
        return "a tar archive"
    return next((what for magic, what in _MAGIC.items() if head.startswith(magic)), "")


def looks_like_records(head: bytes) -> bool:
    """Whether the first bytes of a file begin JSON: an object a line, an array of objects, or one object."""
    text = _begin(head)
    if text.startswith(b"["):
        text = text[1:].lstrip()
    return text.startswith(b"{") and text[1:].lstrip()[:1] in (b'"', b"}")


def json_layout(head: bytes) -> Literal["lines", "array", "object"]:
    """How the first bytes of a JSON file arrange its records; ``object`` is a single one over several lines."""
    text = _begin(head)
    if text.startswith(b"["):
        # A line that is an array of something else is no record, yet it is a line.
        return "array" if text[1:].lstrip()[:1] in (b"{", b"]", b"") else "lines"
    first = text.partition(b"\n")[0].strip()
    return "object" if first == b"{" or (first.startswith(b'{"') and first.endswith((b",", b"{", b"["))) else "lines"


def array_start(head: bytes) -> int:
    """Position behind the bracket that opens an array."""
    return len(head) - len(_begin(head)) + 1


def _begin(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()
