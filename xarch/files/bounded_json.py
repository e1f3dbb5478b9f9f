"""JSON of files, which others may have made: bounded in bytes, values and depth, with finite numbers only."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xarch.errors import UsageError
from xarch.files.limits import MAX_DEPTH, MAX_JSON_BYTES, MAX_JSON_VALUES, depth_of
from xarch.files.regular import open_regular


def parse_json(
    text: str | bytes,
    where: str,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    max_values: int = MAX_JSON_VALUES,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse a JSON document; ``where`` names it in errors.

    Args:
        max_bytes, max_values: largest size and number of values; the latter is judged before anything is built.
        pairs: makes an object from its pairs, or raises ValueError.

    Raises:
        UsageError: not JSON, not UTF-8, too large, nested too deeply, or with a number that is not finite.
    """
    if len(text) > max_bytes:
        raise UsageError(f"{where} has {len(text)} bytes; at most {max_bytes} are read")
    if _values(text) > max_values:
        raise UsageError(f"{where} has more than {max_values} values")
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        data = json.loads(plain, parse_constant=_refused, parse_float=_finite, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as e:
        reason = "nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise UsageError(f"{where} is not valid JSON: {reason}", "download or write it again") from e
    if depth_of(data) > MAX_DEPTH:
        raise UsageError(f"{where} is nested more than {MAX_DEPTH} levels deep")
    return data


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES, max_values: int = MAX_JSON_VALUES) -> Any:
    """Parse a JSON file, see :func:`parse_json`.

    Raises:
        UsageError: as there, or the file cannot be read.
    """
    return parse_json(read_bounded(path, max_bytes), str(path), max_bytes=max_bytes, max_values=max_values)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a whole file of at most ``max_bytes``.

    Raises:
        UsageError: it is missing, not a regular file, cannot be read or is larger.
    """
    try:
        with open_regular(path) as f:
            text = f.read(max_bytes + 1)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", "check the path") from None
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
    if len(text) > max_bytes:
        raise UsageError(f"{path} is larger than {max_bytes} bytes; at most so many are read")
    return text


def _values(text: str | bytes) -> int:
    """Return how many values a text has at most."""
    if isinstance(text, bytes):
        return sum(text.count(mark) for mark in (b"[", b"{", b","))
    return sum(text.count(mark) for mark in ("[", "{", ","))


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond any number")
    return value
