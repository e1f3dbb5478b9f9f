"""Limits of what is believed about files that others made: one home, so that every reader refuses at the same place.

A limit counts what reading takes at its worst, copies included, not what lies on the disk.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xarch.errors import UsageError

LARGEST = 1 << 53
"""Largest number of a configuration, header or option: whole numbers up to it are exact in every program."""

MAX_JSON_BYTES = 64 << 20
MAX_JSON_VALUES = 4_000_000
"""Values of one JSON document; each needs some 60 bytes, whatever its text has."""
MAX_DEPTH = 100
"""Levels of nesting of any document."""

MAX_MEMBERS = 100_000
MAX_RATIO = 200
"""Largest ratio of unpacked to packed size that is believed; text and sparse grids stay far below it."""
RATIO_FREE = 256 << 20
"""Bytes that are unpacked whatever their ratio: grids of sparse scenes are mostly one value."""
MAX_PICKLE_BYTES = 256 << 20
"""Largest pickle stream inside an archive; the tensors' bytes are not part of it."""


def too_dense(packed: int, unpacked: int) -> bool:
    """Whether compressed data claims to unpack to more than is believed."""
    return unpacked > RATIO_FREE and unpacked > MAX_RATIO * max(packed, 1)


def zip_members(opened: zipfile.ZipFile, where: Path | str) -> list[zipfile.ZipInfo]:
    """Return the table of contents of a zip archive, whose length is checked.

    Raises:
        UsageError: too many members.
    """
    members = opened.infolist()
    if len(members) > MAX_MEMBERS:
        raise UsageError(f"{where} has {len(members)} members, at most {MAX_MEMBERS} are read")
    return members


def check_stored_archive(path: Path, *, pickle_bytes: int = MAX_PICKLE_BYTES) -> None:
    """Check a checkpoint of torch, whose archives are not compressed: anything larger than the file is a bomb.

    Raises:
        UsageError: it is damaged, unpacks to more than its own size, or holds a pickle of more than ``pickle_bytes``.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as opened:
            members = zip_members(opened, path)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as e:
        raise UsageError(f"{path} is damaged: {e}", "download or write it again") from e
    if sum(m.file_size for m in members) > path.stat().st_size:
        raise UsageError(f"{path} unpacks to more than its own size", "torch does not write such files; do not use it")
    if sum(m.file_size for m in members if m.filename.endswith(".pkl")) > pickle_bytes:
        raise UsageError(f"{path} has a pickle of more than {pickle_bytes >> 20} MiB besides its tensors")


def absurd_number(data: Any, *, floats: bool = True) -> tuple[str, Any] | None:
    """Return (path, value) of the first number in nested plain data that is beyond ±:data:`LARGEST` or not finite.

    Args:
        floats: also look for numbers that are not finite.
    """
    waiting: list[tuple[str, Any]] = [("", data)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, int | float) and not isinstance(value, bool):
            fits = math.isfinite(value) or not floats if isinstance(value, float) else abs(value) <= LARGEST
            if not fits:
                return name, value
        elif isinstance(value, dict):
            waiting += [(f"{name}.{key}".lstrip("."), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{name}.{i}".lstrip("."), item) for i, item in enumerate(value)]
    return None


def shown(value: Any, length: int = 80) -> str:
    """Return the representation of a value of a file, short enough for a message; huge numbers have none."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a whole number of some {value.bit_length() * 3 // 10 + 1} digits or more"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[:length]}..."


def depth_of(data: Any) -> int:
    """Return the levels of nesting of plain data; more than :data:`MAX_DEPTH` are not counted."""
    level: Iterable[Any] = [data]
    for depth in range(MAX_DEPTH + 2):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return depth
    return MAX_DEPTH + 1
