"""Check that the external data of an ONNX file stays in its folder, before anything opens it.

The rules follow ONNX's own ExternalDataSecurity note: a location is the relative path of a regular file under the
model's folder, reached without symbolic links, and every range lies inside it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from xarch.errors import UsageError

MAX_MODEL_BYTES = 2**31 - 1
"""Maximum size of a protobuf message in bytes."""


@dataclass(frozen=True, slots=True)
class Range:
    """Location of an external tensor's bytes."""

    tensor: str
    location: str
    offset: int
    length: int


def read_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file without its external data.

    Raises:
        UsageError: it is missing, too large, or not an ONNX model.
    """
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise UsageError(f"{path} has {size} bytes; the limit for an ONNX graph is {MAX_MODEL_BYTES}")
        model = onnx.load(os.fspath(path), load_external_data=False)
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    except DecodeError as e:
        raise UsageError(f"{path} is not an ONNX model: {e}") from e
    if not model.HasField("graph") or not model.opset_import:
        raise UsageError(f"{path} is not an ONNX model: it has no graph or no opset")
    return model


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the main graph and every subgraph in the attributes of its nodes."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [g for node in graph.node for a in node.attribute for g in (*a.graphs, *_single(a))]


def _single(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [attribute.g] if attribute.HasField("g") else []


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor stored in the model: initialisers, constants in attributes, sparse parts, functions."""
    nodes = [node for function in model.functions for node in function.node]
    for graph in graphs_of(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        nodes += graph.node
    for node in nodes:
        for a in node.attribute:
            yield from ([a.t] if a.HasField("t") else [])
            yield from a.tensors
            for sparse in (*([a.sparse_tensor] if a.HasField("sparse_tensor") else []), *a.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def external_ranges(model: onnx.ModelProto, path: Path) -> list[Range]:
    """Return the external ranges of ``model``, checked to lie inside regular files of the folder of ``path``.

    Raises:
        UsageError: a location leaves the folder, is a link or not a regular file, or a range is outside its file or
            does not fit the tensor's shape.
    """
    ranges = []
    sizes: dict[str, int] = {}
    for tensor in tensors_of(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = _range(tensor, path)
        if where.location not in sizes:
            sizes[where.location] = _confined_size(path, where)
        size = sizes[where.location]
        if where.offset < 0 or where.length < 0 or where.offset + where.length > size:
            raise UsageError(
                f"{path}: tensor {where.tensor!r} refers to bytes {where.offset} to {where.offset + where.length} of "
                f"{where.location!r}, which has {size}"
            )
        ranges.append(where)
    return ranges


def _range(tensor: onnx.TensorProto, path: Path) -> Range:
    entries = {e.key: e.value for e in tensor.external_data}
    name = tensor.name[:200]
    try:
        offset, length = int(entries.get("offset", "0")), int(entries["length"])
    except (KeyError, ValueError):
        raise UsageError(f"{path}: tensor {name!r} has no readable offset and length: {entries}") from None
    wanted = _bytes(tensor)
    if wanted is not None and length != wanted:
        raise UsageError(f"{path}: tensor {name!r} has {wanted} bytes by shape and {length} by external data")
    return Range(name, entries.get("location", ""), offset, length)


def _bytes(tensor: onnx.TensorProto) -> int | None:
    """Return the bytes required by shape and type, None for types smaller than a byte."""
    try:
        item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        return None
    if tensor.data_type in _PACKED:
        return None
    total = item
    for dim in tensor.dims:
        total *= dim
    return total


_PACKED = {
    getattr(onnx.TensorProto, name)
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
    if hasattr(onnx.TensorProto, name)
}


def _confined_size(path: Path, where: Range) -> int:
    """Return the size of the file at a location, after checking that it is a regular file in the model's folder."""
    location = where.location
    parts = location.replace("\\", "/").split("/")
    if (
        not location
        or "\0" in location
        or location.startswith(("/", "\\"))
        or ".." in parts
        or (len(location) > 1 and location[1] == ":")
    ):
        raise UsageError(
            f"{path}: tensor {where.tensor!r} stores its data at {location!r}, outside the folder of the model",
            "the location of external data must be a relative path without `..`",
        )
    current = path.parent
    for i, part in enumerate(parts):
        current = current / part
        try:
            status = os.lstat(current)
        except OSError as e:
            raise UsageError(f"{path}: external data {location!r} of {where.tensor!r}: {e.strerror}") from e
        if stat.S_ISLNK(status.st_mode):
            raise UsageError(f"{path}: external data {location!r} is a symbolic link, which is not allowed")
        if i == len(parts) - 1 and not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path}: external data {location!r} is not a regular file")
    return int(status.st_size)
