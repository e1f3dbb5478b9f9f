"""Reader of multi-document files: JSON lines, JSON arrays and Parquet."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from xarch import UsageError, too_dense
from xarch_text.corpus import TextFile
from xarch_text.kinds import HEAD, array_start, json_layout
from xarch_text.reading import CHUNK, opened, refuse_named
from xarch_text.tally import Unreadable

MAX_LINE = 1 << 26
"""Maximum bytes of a JSON line or a text; longer ones are skipped, lines without being held in memory."""
MAX_VALUES = 1_000_000
"""Maximum values of one record; each needs some 60 bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        number: index in the file, from 0.
        text: the document, or None for a record that is unwanted or unusable.
        problem: why it is unusable, "" otherwise.
        after: position at which reading continues after it.
    """

    number: int
    text: str | None
    problem: str
    after: dict[str, int]


Wanted = Callable[[int], bool]
"""Whether to parse the record with this number."""


def records_of(file: TextFile, field: str, wanted: Wanted, start: Mapping[str, int] | None) -> Iterator[Record]:
    """Yield the records of a file from a position (an earlier ``after``), or from the beginning.

    Raises:
        Unreadable: the file is damaged; records before the damage have been yielded.
        UsageError: a Parquet file has no such text column.
    """
    reader = _parquet if file.kind == "parquet" else _json
    return reader(file, field, wanted, dict(start or {"record": 0, "at": 0}))


def _json(file: TextFile, field: str, wanted: Wanted, start: dict[str, int]) -> Iterator[Record]:
    path = field.split(".")
    with opened(file) as stream:
        head = stream.read(HEAD)
        refuse_named(head)
        layout = json_layout(head)
        if layout == "array":
            yield from _json_array(stream, path, wanted, start["record"], max(start["at"], array_start(head)))
        elif layout == "object":
            yield from _json_object(stream, path, wanted, start["record"])
        else:
            yield from _json_lines(stream, path, wanted, start)


def _json_lines(stream: BinaryIO, path: list[str], wanted: Wanted, start: dict[str, int]) -> Iterator[Record]:
    number, at = start["record"], start["at"]
    stream.seek(at)
    while line := stream.readline(MAX_LINE):
        at += len(line)
        too_long = len(line) == MAX_LINE and not line.endswith(b"\n")
        while too_long and (more := stream.readline(MAX_LINE)):
            at += len(more)
            if more.endswith(b"\n"):
                break
        after = {"record": number + 1, "at": at}
        if not wanted(number):
            yield Record(number, None, "", after)
        elif too_long:
            yield Record(number, None, "too_long", after)
        else:
            yield _parsed(number, line, path, after)
        number += 1


def _json_object(stream: BinaryIO, path: list[str], wanted: Wanted, number: int) -> Iterator[Record]:
    stream.seek(0)
    text = stream.read(MAX_LINE + 1)
    if number == 0:
        after = {"record": 1, "at": len(text)}
        if not wanted(0):
            yield Record(0, None, "", after)
        elif len(text) > MAX_LINE:
            yield Record(0, None, "too_long", after)
        else:
            yield _parsed(0, text, path, after)


def _json_array(stream: BinaryIO, path: list[str], wanted: Wanted, number: int, at: int) -> Iterator[Record]:
    """Yield elements one at a time, holding only the current one.

    Raises:
        Unreadable: the rest is not JSON, so the start of the next element is unknown.
    """
    stream.seek(at)
    read, decode = json.JSONDecoder().raw_decode, codecs.getincrementaldecoder("utf-8")("strict").decode
    held, size, ended = "", CHUNK, False

    def more() -> None:
        nonlocal held, size, ended
        chunk = stream.read(size)
        ended = not chunk
        held += decode(chunk, final=ended)

    while True:
        text = held.lstrip(" \t\r\n,")
        while not text and not ended:
            more()
            text = held.lstrip(" \t\r\n,")
        if text.startswith("]"):
            return
        at += len(held) - len(text)
        held = text
        try:
            value, end = read(held)
        except RecursionError:
            raise Unreadable("corrupt") from None
        except ValueError:
            end = len(held)
        if end == len(held):
            # An element at the end of the buffer may continue beyond it.
            if ended or len(held) > MAX_LINE or _values(held) > MAX_VALUES:
                raise Unreadable("corrupt" if ended else "too_long")
            size = min(2 * size, MAX_LINE)
            more()
            continue
        at, held, size = at + len(held[:end].encode("utf-8", "surrogatepass")), held[end:], CHUNK
        after = {"record": number + 1, "at": at}
        yield _found(number, value, path, after) if wanted(number) else Record(number, None, "", after)
        number += 1


def _parsed(number: int, line: bytes, path: list[str], after: dict[str, int]) -> Record:
    try:
        text = line.decode("utf-8")
        if _values(text) > MAX_VALUES:
            return Record(number, None, "too_long", after)
        value = json.loads(text)
    except UnicodeDecodeError:
        return Record(number, None, "not_utf8", after)
    except (ValueError, RecursionError):
        return Record(number, None, "invalid_json" if line.strip() else "empty", after)
    return _found(number, value, path, after)


def _values(text: str) -> int:
    """Return how many values a JSON text has at most."""
    return text.count(",") + text.count("[") + text.count("{")


def _found(number: int, value: Any, path: list[str], after: dict[str, int]) -> Record:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return _checked(number, value, after)


def _checked(number: int, value: Any, after: dict[str, int]) -> Record:
    if isinstance(value, bytes):
        # A bytes column, as written by programs that do not mark their bytes as text.
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return Record(number, None, "not_utf8", after)
    if not isinstance(value, str):
        return Record(number, None, "no_text", after)
    if not value or value.isspace():
        return Record(number, None, "empty", after)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can contain half a surrogate pair, which is not a character.
        return Record(number, None, "not_utf8", after)
    return Record(number, value, "", after)


def _parquet(file: TextFile, field: str, wanted: Wanted, start: dict[str, int]) -> Iterator[Record]:
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file.path)
        _require_column(schema, field, file.name)
        # Repeated texts stay references: 256 rows that name one text of a gigabyte would become 256 gigabytes.
        plain = field in schema.names and _is_plain_text(schema.field(field).type)
        with pq.ParquetFile(file.path, read_dictionary=[field] if plain else None) as table:
            path = field.split(".") if field not in table.schema_arrow.names else [field]
            _check_pages(table.metadata)
            number = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if number + rows <= start["record"]:
                    number += rows
                    continue
                for batch in table.iter_batches(batch_size=256, row_groups=[group], columns=[field]):
                    if number + batch.num_rows > start["record"]:
                        column = batch.column(0)
                        for i in range(max(0, start["record"] - number), batch.num_rows):
                            n = number + i
                            after = {"record": n + 1, "at": 0}
                            yield _cell(n, column[i], path, after) if wanted(n) else Record(n, None, "", after)
                    number += batch.num_rows
    except (UsageError, Unreadable, MemoryError):
        raise
    except Exception as e:
        # Arrow's errors, and those of Python's for names, sizes and texts that a damaged file makes up.
        raise Unreadable("corrupt") from e


def _check_pages(metadata: Any) -> None:
    """Raise Unreadable if a column unpacks to far more than is stored."""
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        for c in range(group.num_columns):
            column = group.column(c)
            if too_dense(column.total_compressed_size, column.total_uncompressed_size):
                raise Unreadable("corrupt", "Parquet that unpacks out of all proportion")


def _cell(number: int, cell: Any, path: list[str], after: dict[str, int]) -> Record:
    try:
        inner = getattr(cell, "value", cell)
        buffer = inner.as_buffer() if hasattr(inner, "as_buffer") and inner.is_valid else None
        if buffer is not None and buffer.size > MAX_LINE:
            return Record(number, None, "too_long", after)
        return _found(number, cell.as_py(), path[1:], after)
    except UnicodeDecodeError:
        return Record(number, None, "not_utf8", after)


def _require_column(schema: Any, field: str, name: str) -> None:
    texts = list(_text_columns(schema))
    if field not in texts:
        raise UsageError(
            f"{name} has no text column {field!r}",
            f"choose one with `--set data.options.field=NAME`: {', '.join(texts) or 'it has none'}",
        )


def _text_columns(fields: Any, above: str = "") -> Iterator[str]:
    """Yield text columns, including nested ones (``a.b``), for every Arrow string type."""
    import pyarrow as pa

    for field in fields:
        kind, name = field.type, above + field.name
        if pa.types.is_struct(kind):
            yield from _text_columns(kind.fields, f"{name}.")
        elif _is_text(kind):
            yield name


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if isinstance(kind, pa.ExtensionType):
        return _is_text(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _is_text(kind.value_type)
    return _is_plain_text(kind)


def _is_plain_text(kind: Any) -> bool:
    import pyarrow as pa

    is_one = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
    )
    return any(is_kind(kind) for is_kind in is_one)
