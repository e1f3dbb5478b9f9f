"""Weights in CTranslate2's binary format, and their names in this family.

A file is: version (uint32), name of the model (string), revision (uint32), number of variables (uint32), then of each:
name, rank (uint8), dimensions (uint32), type (uint8), bytes (uint32), values; at last other names of variables. A
string is its length (uint16) and as many bytes, the last one zero.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xarch import UsageError, open_regular

VERSION = 6
MOST_VARIABLES = 1 << 16
MOST_RANK = 8

TYPES: dict[int, np.dtype[Any]] = {i: np.dtype(f"<{name}") for i, name in enumerate(("f4", "i1", "i2", "i4", "f2"))}
FLOATS = (0, 4)


@dataclass(frozen=True)
class Variable:
    """Where a variable lies in its file.

    Attributes:
        shape: its dimensions.
        kind: number of its type.
        start: offset of its values in bytes.
    """

    shape: tuple[int, ...]
    kind: int
    start: int


def variables(file: Path) -> dict[str, Variable]:
    """Return the variables of a file by name; their values are not read.

    Raises:
        UsageError: it is no such file of Whisper, or damaged.
    """
    size = file.stat().st_size
    with open_regular(file) as stream:
        try:
            version, name = _number(stream, "<I"), _text(stream)
            revision, count = _number(stream, "<I"), _number(stream, "<I")
            if version != VERSION or name != "WhisperSpec" or count > MOST_VARIABLES:
                raise UsageError(
                    f"{file} is version {version} of {name!r} with {count} variables, wanted version {VERSION} of "
                    f"'WhisperSpec' (revision {revision})"
                )
            return dict(_variable(stream, file, size) for _ in range(count))
        except (struct.error, UnicodeDecodeError) as e:
            raise UsageError(f"{file} is no model of CTranslate2, or ends too early: {e}") from e


def _variable(stream: BinaryIO, file: Path, size: int) -> tuple[str, Variable]:
    name, rank = _text(stream), _number(stream, "<B")
    if rank > MOST_RANK:
        raise UsageError(f"{file}: {name!r} has {rank} dimensions, at most {MOST_RANK} are read")
    shape = tuple(_number(stream, "<I") for _ in range(rank))
    kind, told = _number(stream, "<B"), _number(stream, "<I")
    start = stream.tell()
    if kind not in TYPES or prod(shape) * TYPES[kind].itemsize != told or start + told > size:
        raise UsageError(f"{file}: {name!r} of type {kind} and shape {shape} does not have {told} bytes")
    stream.seek(told, 1)
    return name, Variable(shape, kind, start)


def _number(stream: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])


def _text(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "<H")).rstrip(b"\0").decode()


def read(file: Path, found: Mapping[str, Variable], name: str) -> np.ndarray:
    """Return the values of a variable, read-only and not copied.

    Raises:
        UsageError: it is no floating-point number.
    """
    variable = found[name]
    if variable.kind not in FLOATS:
        raise UsageError(
            f"{file}: {name!r} is stored in {8 * TYPES[variable.kind].itemsize}-bit integers",
            "convert the model to float16 or float32",
        )
    return np.memmap(file, TYPES[variable.kind], "r", variable.start, variable.shape)


PLACES = {
    "encoder/position_encodings/encodings": "encoder_places",
    "decoder/position_encodings/encodings": "places",
}
"""CTranslate2 -> ours, of positions."""

PARTS = {
    "encoder/conv1": "hear1",
    "encoder/conv2": "hear2",
    "encoder/layer_norm": "encoder_norm",
    "decoder/layer_norm": "norm",
    "decoder/embeddings": "embed",
}
"""CTranslate2 -> ours, outside of layers."""


def renamed(name: str) -> Iterator[tuple[str, int, int]]:
    """Yield what a variable holds as (our name, part, parts): projections that read the same are stacked, and zeros
    stand for the bias of keys, which we have none of. Nothing for settings."""
    if name in PLACES:
        yield PLACES[name], 0, 1
        return
    part, _, leaf = name.rpartition("/")
    leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
    if part in PARTS:
        yield f"{PARTS[part]}.{leaf}", 0, 1
        return
    side, _, rest = part.partition("/layer_")
    number, _, inner = rest.partition("/")
    if inner in INNER:
        names = INNER[inner]
        for i, own in enumerate(names):
            if not (own.endswith(".k") and leaf == "bias"):
                yield f"{side}.{number}.{own}.{leaf}", i, len(names)


INNER: dict[str, tuple[str, ...]] = {
    "self_attention/layer_norm": ("norm1",),
    "self_attention/linear_0": ("attention.q", "attention.k", "attention.v"),
    "self_attention/linear_1": ("attention.o",),
    "attention/layer_norm": ("norm_cross",),
    "attention/linear_0": ("cross.q",),
    "attention/linear_1": ("cross.k", "cross.v"),
    "attention/linear_2": ("cross.o",),
    "ffn/layer_norm": ("norm2",),
    "ffn/linear_0": ("mlp.up",),
    "ffn/linear_1": ("mlp.down",),
}
"""CTranslate2 -> ours, inside a layer."""
