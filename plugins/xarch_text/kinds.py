"""Detection of a file's kind by its extension, or else by its first bytes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Literal

from xarch import open_regular

Kind = Literal["text", "html", "json", "parquet"]
"""text: one document. html: one document with tags. json: records, one per line or in an array. parquet: records."""

HEAD = 1 << 16
"""Number of leading bytes of a file to inspect."""

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
"""Extensions of single-document files. Code and markup may begin like a record without being one."""
MAYBE_RECORDS = (".txt", ".text")
"""Extensions of prose in which records are detected nevertheless."""

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
    """Return the kind implied by an extension (lower case, without .gz), or None if unknown."""
    return "text" if suffix in PROSE else BY_SUFFIX.get(suffix)


def kind_by_content(path: Path, *, compressed: bool) -> tuple[Kind, str]:
    """Return (kind, "") from the first bytes of a file; for unsupported files ("text", description)."""
    try:
        with open_regular(path) as stream:
            head = (gzip.GzipFile(fileobj=stream) if compressed else stream).read(HEAD)
    except (OSError, EOFError, zlib.error):
        # Reading its text later encounters the same damage, which is counted there.
        return "text", ""
    if head.startswith(b"PAR1"):
        return "parquet", ""
    seen = named(head)
    if seen:
        return "text", seen
    return ("json" if looks_like_records(head) else "text"), ""


def named(head: bytes) -> str:
    """Return the description of a non-text file from its first bytes; "" if unknown."""
    if b"ustar" in head[257:263]:
        return "a tar archive"
    return next((what for magic, what in _MAGIC.items() if head.startswith(magic)), "")


def looks_like_records(head: bytes) -> bool:
    """Return whether a file starts with JSON: one object per line, an array of objects, or one object."""
    text = _begin(head)
    if text.startswith(b"["):
        text = text[1:].lstrip()
    return text.startswith(b"{") and text[1:].lstrip()[:1] in (b'"', b"}")


def json_layout(head: bytes) -> Literal["lines", "array", "object"]:
    """Return the layout of records in a JSON file; ``object`` is a single record over several lines."""
    text = _begin(head)
    if text.startswith(b"["):
        # A line that is an array of other values is not a record, but still a line.
        return "array" if text[1:].lstrip()[:1] in (b"{", b"]", b"") else "lines"
    first = text.partition(b"\n")[0].strip()
    return "object" if first == b"{" or (first.startswith(b'{"') and first.endswith((b",", b"{", b"["))) else "lines"


def array_start(head: bytes) -> int:
    """Return the position after the bracket that opens an array."""
    return len(head) - len(_begin(head)) + 1


def _begin(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()
