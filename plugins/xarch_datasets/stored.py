"""Rows of a data set as Parquet files in the user's cache, written once, batch by batch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xarch import UsageError, cache_dir, new_folder, one_at_a_time, read_json, sampled_digest, say

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(@[\w./-]+)?\Z")
SAVED = ("dataset_dict.json", "state.json")
"""One of these lies in a folder written by ``save_to_disk``."""
KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
}
ROWS_DIR = "rows"
ROWS = 1000
"""Rows held in memory while they are stored."""


@dataclass(frozen=True)
class Wanted:
    """Which rows of which data set.

    Attributes:
        ref: folder, or name on the hub with ``@REVISION``.
        config, split: None for the only one, and for all splits.
        rows: of every split; None for all.
    """

    ref: str
    config: str | None
    split: str | None
    rows: int | None


@dataclass(frozen=True)
class Stored:
    """A stored data set.

    Attributes:
        folder: with one file ``SPLIT.parquet`` a split.
        texts, pictures: names of the columns of strings and of pictures.
        rows: split -> number of rows.
    """

    folder: Path
    texts: tuple[str, ...]
    pictures: tuple[str, ...]
    rows: Mapping[str, int]


def stored(wanted: Wanted) -> Stored:
    """Return the stored rows, after loading and storing them if they are not there yet.

    Raises:
        UsageError: the data set, its configuration or split does not exist, its files are damaged, or the hub cannot
            be reached.
    """
    folder = Path(wanted.ref).expanduser()
    local = folder if folder.is_dir() else None
    if local is None and not HUB_ID.match(wanted.ref):
        raise UsageError(
            f"datasets:{wanted.ref} is neither a folder (looked for {folder.absolute()}) nor a name on the hub",
            "datasets:FOLDER, datasets:OWNER/NAME or datasets:OWNER/NAME@REVISION",
        )
    content = sampled_digest(_files(local)) if local is not None else ""
    asked = json.dumps(
        [str(local.resolve()) if local else wanted.ref, wanted.config, wanted.split, wanted.rows, content]
    )
    home = cache_dir() / "datasets"
    out = home / hashlib.sha256(asked.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    with one_at_a_time(home, say):
        if not out.is_dir():
            say(f"storing datasets:{wanted.ref} once in {out}")
            with _said(wanted.ref), new_folder(out) as part:
                _store(wanted, local, part)
    facts = read_json(out / "facts.json")
    return Stored(out / ROWS_DIR, tuple(facts["texts"]), tuple(facts["pictures"]), facts["rows"])


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return [(p.relative_to(folder).as_posix(), p) for p in found]


def _store(wanted: Wanted, local: Path | None, out: Path) -> None:
    splits = _loaded(wanted, local)
    features = next(iter(splits.values())).features
    if features is None:
        raise UsageError(f"datasets:{wanted.ref} does not say which columns it has", "name a folder of Parquet files")
    (out / ROWS_DIR).mkdir()
    facts: dict[str, Any] = {
        "texts": [name for name, f in features.items() if getattr(f, "dtype", "") in ("string", "large_string")],
        "pictures": [name for name, f in features.items() if _is_picture(f)],
        "rows": {name: _write(rows, out / ROWS_DIR / f"{name}.parquet", wanted.rows) for name, rows in splits.items()},
    }
    (out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _is_picture(feature: Any) -> bool:
    """Return whether a column holds pictures: encoded, or as structures and bytes without that name."""
    import datasets

    plain = "bytes" in feature if isinstance(feature, dict) else getattr(feature, "dtype", "") == "binary"
    return isinstance(feature, datasets.Image) or plain


def _loaded(wanted: Wanted, local: Path | None) -> dict[str, Any]:
    """Return the wanted splits by name, streamed unless they were saved by the library."""
    import datasets

    if local is not None and any((local / name).is_file() for name in SAVED):
        found = datasets.load_from_disk(str(local))
    elif local is not None:
        files = [path for _, path in _files(local) if path.suffix.lower() in KINDS]
        kinds = {KINDS[path.suffix.lower()] for path in files}
        if len(kinds) != 1:
            held = f"files of several kinds: {', '.join(sorted(kinds))}" if kinds else "no file that can be read"
            raise UsageError(f"datasets:{wanted.ref} has {held}", f"files of one kind: {', '.join(sorted(KINDS))}")
        found = datasets.load_dataset(kinds.pop(), data_files=_by_split(files), streaming=True)
    else:
        name, _, revision = wanted.ref.partition("@")
        found = datasets.load_dataset(name, wanted.config, revision=revision or None, streaming=True)
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if wanted.split is None:
        return splits
    if wanted.split not in splits:
        raise UsageError(f"datasets:{wanted.ref} has no split {wanted.split!r}; it has {', '.join(splits)}")
    return {wanted.split: splits[wanted.split]}


def _by_split(files: list[Path]) -> dict[str, list[str]]:
    """Return the files by the split that their names begin with; all are of ``train`` if none says so."""
    found: dict[str, list[str]] = {}
    for path in files:
        head = re.split(r"[-_.]", path.name.lower())[0]
        split = {"test": "test", "validation": "validation", "valid": "validation", "dev": "validation"}.get(head)
        found.setdefault(split or "train", []).append(str(path))
    return found


def _write(rows: Any, file: Path, most: int | None) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = rows.features.arrow_schema, 0
    with pq.ParquetWriter(file, schema) as to:
        for table in rows.with_format("arrow").iter(batch_size=min(ROWS, most or ROWS)):
            taken = table if most is None else table.slice(0, most - count)
            to.write_table(pa.table(taken).cast(schema))
            count += taken.num_rows
            if count == most:
                break
    return count


@contextlib.contextmanager
def _said(ref: str) -> Iterator[None]:
    """Turn errors of the library, and of those below it, into one for people; keep it quiet and its use to itself."""
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as e:
        # Of the hub, of HTTP libraries, of Arrow, of the library's own readers: all of them say what is wrong.
        why = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        raise UsageError(f"datasets:{ref} cannot be loaded: {why}", "check name, configuration and network") from e
    finally:
        if bars:
            datasets.enable_progress_bars()
