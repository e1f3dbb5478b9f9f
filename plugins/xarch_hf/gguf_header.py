"""The header of a GGUF file, checked against the file before any library reads it.

Format, little endian: "GGUF", version, number of tensors, number of metadata entries; the entries (key, type, value);
the tensors (name, dimensions innermost first, type, offset); padding to the alignment; the data.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xarch import UsageError, open_regular

VERSIONS = (2, 3)
MAX_ENTRIES = 100_000
MAX_TEXT_BYTES = 64 << 20
MAX_RANK = 4
KEPT_ITEMS = 64
"""Longer arrays (vocabularies) are skipped and only their length is kept."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Length:
    """An array represented only by its number of items."""

    items: int


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor: shape outermost first, name of its type, its byte range in the file."""

    shape: tuple[int, ...]
    kind: str
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Metadata and tensors of a GGUF file."""

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    def fact(self, name: str, default: Any = None) -> Any:
        """Return metadata of the architecture, e.g. ``fact("block_count")``."""
        return self.metadata.get(f"{self.metadata.get('general.architecture')}.{name}", default)


def gguf_header(path: Path) -> GGUFHeader:
    """Read and check a header without reading tensor data.

    Raises:
        UsageError: the file is not a GGUF file or is truncated, or its counts, sizes or offsets are inconsistent.
    """
    try:
        with open_regular(path) as f:
            size = path.stat().st_size
            if size < 24 or f.read(4) != b"GGUF":
                raise UsageError(f"{path} is not a GGUF file", "gguf: reads files written by llama.cpp's converters")
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _Reader(view, size).header()
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    except (_Corrupt, struct.error, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is a damaged GGUF file: {e}", "download it again") from e


class _Corrupt(Exception):
    """The file is inconsistent."""


class _Reader:
    def __init__(self, view: mmap.mmap, size: int) -> None:
        self.view, self.size, self.at = view, size, 4

    def header(self) -> GGUFHeader:
        version = self.scalar("I")
        if version not in VERSIONS:
            raise _Corrupt(f"version {version}, supported: {', '.join(map(str, VERSIONS))}")
        tensor_count, entry_count = self.count("tensors"), self.count("metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self.text()
            if key in metadata:
                raise _Corrupt(f"{key!r} appears twice")
            metadata[key] = self.value(self.scalar("I"))
        places = [self.place() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise _Corrupt(f"alignment {alignment!r}")
        base = -(-self.at // alignment) * alignment
        return GGUFHeader(version, metadata, self.tensors(places, base, alignment))

    def take(self, count: int) -> int:
        """Advance by ``count`` bytes; return where they start."""
        start = self.at
        if count > self.size - start:
            raise _Corrupt(f"{count} bytes wanted at {start}, the file has {self.size}")
        self.at = start + count
        return start

    def scalar(self, code: str) -> Any:
        return struct.unpack_from(f"<{code}", self.view, self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, what: str) -> int:
        count = self.scalar("Q")
        if count > MAX_ENTRIES:
            raise _Corrupt(f"{count} {what}, at most {MAX_ENTRIES} are believed")
        return int(count)

    def text(self) -> str:
        length = self.scalar("Q")
        if length > MAX_TEXT_BYTES:
            raise _Corrupt(f"a text of {length} bytes")
        start = self.take(length)
        return self.view[start : start + length].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise _Corrupt(f"metadata of type {kind}")
        return self.scalar(_SCALARS[kind])

    def array(self) -> tuple[Any, ...] | Length:
        kind, items = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            start = self.take(items * struct.calcsize(f"<{_SCALARS[kind]}"))
            return (
                struct.unpack_from(f"<{items}{_SCALARS[kind]}", self.view, start)
                if items <= KEPT_ITEMS
                else Length(items)
            )
        if kind != _TEXT:
            raise _Corrupt(f"an array of type {kind}")
        if items > self.size // 8:
            raise _Corrupt(f"an array of {items} texts")
        for _ in range(items):
            self.take(self.scalar("Q"))
        return Length(items)

    def place(self) -> tuple[str, tuple[int, ...], int, int]:
        name, rank = self.text(), self.scalar("I")
        if rank > MAX_RANK:
            raise _Corrupt(f"tensor {name!r} has {rank} dimensions")
        shape = tuple(int(self.scalar("Q")) for _ in range(rank))
        return name, shape[::-1], self.scalar("I"), self.scalar("Q")

    def tensors(
        self, places: list[tuple[str, tuple[int, ...], int, int]], base: int, alignment: int
    ) -> dict[str, GGUFTensor]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        found: dict[str, GGUFTensor] = {}
        for name, shape, number, offset in places:
            try:
                kind = GGMLQuantizationType(number)
            except ValueError:
                raise _Corrupt(f"tensor {name!r} has the unknown type {number}") from None
            block, block_bytes = GGML_QUANT_SIZES[kind]
            elements = math.prod(shape)
            if elements % block or (shape and shape[-1] % block):
                raise _Corrupt(f"tensor {name!r}: {kind.name} comes in blocks of {block}, its shape is {shape}")
            start = base + offset
            stop = start + elements // block * block_bytes
            if offset % alignment or stop > self.size:
                raise _Corrupt(f"tensor {name!r} ends at byte {stop}, the file has {self.size}")
            if name in found:
                raise _Corrupt(f"tensor {name!r} appears twice")
            found[name] = GGUFTensor(shape, kind.name, start, stop)
        end = base
        for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)):
            if tensor.start < end:
                raise _Corrupt(f"tensor {name!r} overlaps the one before it")
            end = tensor.stop
        return found
