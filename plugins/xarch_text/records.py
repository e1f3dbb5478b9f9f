"""Documents out of one file that holds many: JSON lines and Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xarch import UsageError
from xarch_text.corpus import TextFile
from xarch_text.reading import opened
from xarch_text.tally import Unreadable

MAX_LINE = 1 << 26
"""Bytes of the longest JSON line; a longer one is skipped without being held in memory."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        number: its place in the file, from 0.
        text: the document, or None for a record that is not wanted or not usable.
        problem: why it is not usable, "" otherwise.
        after: position at which reading goes on behind it.
    """

    number: int
    text: str | None
    problem: str
    after: dict[str, int]


Wanted = Callable[[int], bool]
"""Whether the record with this number is to be parsed."""


def records_of(file: TextFile, field: str, wanted: Wanted, start: Mapping[str, int] | None) -> Iterator[Record]:
    """Records of a file from a position on (a former ``after``), or from its beginning.

    Raises:
        Unreadable: the file is damaged; records before the damage were given.
        UsageError: a Parquet file has no such column of text.
    """
    reader = _parquet if file.suffix == ".parquet" else _json_lines
    return reader(file, field, wanted, dict(start or {"record": 0, "at": 0}))


def _json_lines(file: TextFile, field: str, wanted: Wanted, start: dict[str, int]) -> Iterator[Record]:
    path = field.split(".")
    number, at = start["record"], start["at"]
    with opened(file) as stream:
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


def _parsed(number: int, line: bytes, path: list[str], after: dict[str, int]) -> Record:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Record(number, None, "not_utf8", after)
    except (ValueError, RecursionError):
        return Record(number, None, "invalid_json" if line.strip() else "empty", after)
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return _checked(number, value, after)


def _checked(number: int, value: Any, after: dict[str, int]) -> Record:
    if not isinstance(value, str):
        return Record(number, None, "no_text", after)
    if not value or value.isspace():
        return Record(number, None, "empty", after)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair, which is no character.
        return Record(number, None, "not_utf8", after)
    return Record(number, value, "", after)


def _parquet(file: TextFile, field: str, wanted: Wanted, start: dict[str, int]) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as table:
            _require_column(table.schema_arrow, field, file.name)
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
                            wants = wanted(n)
                            yield _checked(n, column[i].as_py(), after) if wants else Record(n, None, "", after)
                    number += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise Unreadable("corrupt") from e


def _require_column(schema: Any, field: str, name: str) -> None:
    import pyarrow as pa

    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if field not in texts:
        raise UsageError(
            f"{name} has no column {field!r} of text",
            f"choose one with `--set data.options.field=NAME`: {', '.join(texts) or 'it has none'}",
        )
