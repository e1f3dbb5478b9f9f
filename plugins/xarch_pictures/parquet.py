"""Parquet files as model hubs store pictures: a column of image files, and one of labels with their names."""

from __future__ import annotations

import bisect
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from xarch import SkipSample, UsageError, cache_dir, new_folder, one_at_a_time, open_regular, sampled_digest, say
from xarch_pictures.folders import common_size
from xarch_pictures.table import MAX_PICTURES, TRAIN, Table, names_of, part_of

IN_MEMORY = 1 << 30
"""Bytes of pictures that are held in memory; more are unpacked once into the user's cache and mapped from there."""
MAX_SCHEMA = 64 << 20


def read_parquet(files: list[Path], image: str | None, label: str | None, labels: bool) -> Table:
    """Read labels and headers of the Parquet files of a data set.

    Raises:
        UsageError: a file is damaged, or it is not clear which columns are meant.
    """
    import pyarrow as pa

    opened, parts, given = [], [], []
    try:
        for path in files:
            with open_regular(path):
                pass  # a pipe or a device is refused before pyarrow opens it by name
            opened.append(_open(path))
        schema = opened[0].schema_arrow
        features = _features(schema)
        column = _one(image, schema, [n for n in schema.names if _is_picture(schema, n)], "image", files[0])
        known_labels = [n for n in schema.names if _is_label(schema, n, features)] if labels else []
        target = _one(label, schema, known_labels, "label", files[0]) if labels else ""
        for path, file in zip(files, opened, strict=True):
            part = part_of(path.name) if part_of(path.name) is not None else part_of(path.parent.name)
            parts.append(np.full(file.metadata.num_rows, TRAIN if part is None else part, np.int8))
            if labels:
                given.append(file.read(columns=[target]).column(0))
        y, words = _labels(given, target, files[0]) if labels else (None, ())
    except (pa.ArrowException, OSError, KeyError) as e:
        raise UsageError(
            f"{files[0].parent}: its Parquet files are damaged or differ: {e}", "download them again"
        ) from e
    names = names_of(words or _class_names(features, target), y)
    kept = np.ones(sum(map(len, parts)), bool) if y is None else (y >= 0) & (y < len(names))
    known = [(path.name, path) for path in files]
    lazy = _Lazy(known, column, np.flatnonzero(kept))
    dropped = int((~kept).sum())
    return Table(
        title=f"{files[0].parent.name}, {int(kept.sum())} pictures" + (f" of {len(names)} classes" if names else ""),
        files=known,
        parts=np.concatenate(parts)[kept],
        labels=y[kept] if y is not None else None,
        names=names,
        channels=3,
        size=common_size(_Head(opened[0], column), min(opened[0].metadata.num_rows, 64)),  # type: ignore[arg-type]
        load=lazy,
        warnings=(f"{dropped} rows without a label are not read",) if dropped else (),
    )


def _open(path: Path) -> Any:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, thrift_string_size_limit=MAX_SCHEMA, thrift_container_size_limit=1 << 24)
    if file.metadata.num_rows > MAX_PICTURES:
        raise UsageError(f"{path} has {file.metadata.num_rows} rows, at most {MAX_PICTURES} are read")
    return file


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the features of the schema's ``huggingface`` metadata; they are only hints, so others are ignored."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _class_names(features: dict[str, dict[str, Any]], column: str) -> list[str]:
    """Return the names of a column's classes; none unless all are words."""
    found = features.get(column, {}).get("names")
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else []


def _is_picture(schema: Any, name: str) -> bool:
    import pyarrow.types as kinds

    kind = schema.field(name).type
    holds = kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return holds or kinds.is_binary(kind) or kinds.is_large_binary(kind)


def _is_label(schema: Any, name: str, features: dict[str, dict[str, Any]]) -> bool:
    import pyarrow.types as kinds

    named = bool(_class_names(features, name))
    return kinds.is_integer(schema.field(name).type) and (named or "label" in name)


def _one(asked: str | None, schema: Any, found: list[str], what: str, where: Path) -> str:
    there = found if asked is None else [n for n in schema.names if n == asked]
    if len(there) == 1:
        return there[0]
    seen = f"several {what} columns" if there else f"no {what} column" + (f" {asked!r}" if asked else "")
    text = f"{where} has {seen} ({', '.join(there or schema.names)})"
    raise UsageError(text, f"name one of these: --set data.options.{what}_column=NAME")


def _labels(columns: list[Any], name: str, where: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return class numbers, -1 for null, and the classes' names where the column holds words, in their order.

    Raises:
        UsageError: the column holds neither integers nor words.
    """
    import pyarrow as pa

    kinds = {c.type for c in columns}
    if all(pa.types.is_integer(kind) for kind in kinds):
        return np.concatenate([c.fill_null(-1).to_numpy().astype(np.int64) for c in columns]), ()
    if not all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds):
        held = ", ".join(sorted(map(str, kinds)))
        raise UsageError(f"{where}: column {name!r} holds {held}", "labels are integers or words")
    words = [value for c in columns for value in c.to_pylist()]
    names = sorted({word for word in words if word is not None})
    number = {word: k for k, word in enumerate(names)}
    return np.array([number.get(word, -1) for word in words], np.int64), tuple(names)


class _Head:
    """The first pictures of a file, from its first row group only."""

    def __init__(self, file: Any, column: str) -> None:
        self.batch = next(file.iter_batches(batch_size=64, columns=[column]), None)

    def __getitem__(self, index: int) -> bytes:
        return _bytes(self.batch.column(0)[index]) if self.batch is not None else b""


class _Lazy:
    """Opens the pictures when they are first needed, once per process."""

    def __init__(self, files: list[tuple[str, Path]], column: str, rows: np.ndarray) -> None:
        self.files, self.column, self.rows = files, column, rows

    def __call__(self) -> Cells:
        import pyarrow as pa

        opened = [_open(path) for _, path in self.files]
        if sum(_size(file, self.column) for file in opened) <= IN_MEMORY:
            chunks = [c for file in opened for c in file.read(columns=[self.column]).column(0).chunks]
        else:
            mapped = pa.ipc.open_file(pa.memory_map(str(self._unpacked(opened))))
            chunks = [mapped.get_batch(i).column(0) for i in range(mapped.num_record_batches)]
        return Cells(chunks, self.rows)

    def _unpacked(self, opened: list[Any]) -> Path:
        import pyarrow as pa

        key = hashlib.sha256(f"{sampled_digest(self.files)} {self.column}".encode()).hexdigest()[:24]
        home = cache_dir() / "pictures"
        file = home / key / "pictures.arrow"
        with one_at_a_time(home, say):
            if not file.is_file():
                say(f"unpacking {len(opened)} Parquet files once into {home}")
                with new_folder(file.parent) as folder:
                    first = opened[0].schema_arrow.field(self.column)
                    with (
                        pa.OSFile(str(folder / file.name), "wb") as out,
                        pa.ipc.new_file(out, pa.schema([first])) as to,
                    ):
                        for source in opened:
                            for batch in source.iter_batches(batch_size=1024, columns=[self.column]):
                                to.write_batch(batch)
        return file


def _size(file: Any, column: str) -> int:
    meta, total = file.metadata, 0
    for group in range(meta.num_row_groups):
        row = meta.row_group(group)
        cells = (row.column(i) for i in range(row.num_columns))
        total += sum(c.total_uncompressed_size for c in cells if c.path_in_schema.split(".")[0] == column)
    return total


class Cells:
    """Image files in Arrow arrays, by index.

    Args:
        chunks: arrays of bytes, or of structures with a field ``bytes``.
        rows: row of each picture.
    """

    def __init__(self, chunks: list[Any], rows: np.ndarray) -> None:
        self.chunks, self.rows = chunks, rows
        self.starts = [0, *np.cumsum([len(c) for c in chunks]).tolist()]

    def __getitem__(self, index: int) -> bytes:
        row = int(self.rows[index])
        chunk = bisect.bisect_right(self.starts, row) - 1
        return _bytes(self.chunks[chunk][row - self.starts[chunk]])


def _bytes(cell: Any) -> bytes:
    """Return the bytes of a cell.

    Raises:
        SkipSample: it holds none, only the name of a file elsewhere.
    """
    value = cell.as_py()
    found = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(found, bytes):
        raise SkipSample("no bytes")
    return found
