"""The header of a safetensors file, checked against the file before anything is allocated.

Format: 8 bytes of little-endian header length N, N bytes of JSON (name -> dtype, shape, data_offsets), then the data.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xarch.errors import UsageError
from xarch.files.bounded_json import parse_json
from xarch.files.regular import open_regular

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 500_000
MAX_RANK = 16

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: dtype as safetensors names it, shape, and its byte range after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds.

    Attributes:
        tensors: name -> entry, in the order of their bytes.
        metadata: the free text of the file.
        data_bytes: bytes of all tensors together.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_bytes: int


def looks_like_safetensors(path: Path) -> bool:
    """Whether the first bytes are a header length and an opening brace; decides by content, not by name."""
    with open_regular(path) as f:
        head = f.read(9)
    return len(head) == 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= MAX_HEADER_BYTES


def weights_header(path: Path | str) -> Header:
    """Read and check the header of a safetensors file; the tensors' bytes are not touched.

    Checked: header size, JSON without repeated names, known dtypes, shapes that agree with the byte ranges, ranges
    that follow one another without gap or overlap, and a file that is exactly as long as they say.

    Raises:
        UsageError: the file does not exist, is cut, or says something that is not so.
    """
    path = Path(path)
    try:
        size = os.stat(path).st_size
        with open_regular(path) as f:
            prefix = f.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _bad(path, f"its header claims {length} bytes, the file has {size}")
            raw = f.read(length)
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    if len(raw) != length:
        raise _bad(path, f"its header claims {length} bytes, only {len(raw)} could be read")
    fields = _parse(path, raw)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, "its __metadata__ is not text")
    entries = {name: _entry(path, name, value) for name, value in fields.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 0
    for name, entry in ordered.items():
        if entry.start != end:
            relation = "overlaps the tensor before it" if entry.start < end else "leaves a gap before it"
            raise _bad(path, f"tensor {name!r} starts at byte {entry.start} and {relation} (which ends at {end})")
        end = entry.stop
    if end != size - 8 - length:
        raise _bad(path, f"its tensors need {end} bytes, the file holds {size - 8 - length}")
    return Header(ordered, metadata, end)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a name appears twice")
        return table

    fields = parse_json(
        raw, f"the header of {path}", max_bytes=MAX_HEADER_BYTES, max_values=8 * MAX_TENSORS, pairs=unique
    )
    if not raw.startswith(b"{") or not isinstance(fields, dict):
        raise _bad(path, "its header is not a JSON object")
    return fields


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _bad(path, f"tensor {name!r} has dtype {dtype!r}, known are {', '.join(ITEM_BYTES)}")
    if not _sizes(shape) or len(shape) > MAX_RANK or not _sizes(offsets) or len(offsets) != 2:
        raise _bad(path, f"tensor {name!r} has shape {shape!r} and offsets {offsets!r}")
    entry = TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])
    needed = entry.elements * ITEM_BYTES[dtype]
    if entry.stop - entry.start != needed:
        raise _bad(path, f"tensor {name!r} needs {needed} bytes, its range has {entry.stop - entry.start}")
    return entry


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _bad(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} is not a sound safetensors file: {what}", "download or write it again")
