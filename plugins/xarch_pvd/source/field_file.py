"""xarch's own file format for fields: safetensors with all other data in its header."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from xarch import UsageError, load_weights, parse_json, save_weights, typed, weights_header
from xarch_field.facts import ViewFacts
from xarch_pvd.source.formats.record import FieldFile, FieldHead
from xarch_pvd.targets.representations.records import check_shapes

KEY = "xarch_field"
FORMAT = 1
MAX_HEAD_BYTES = 16 << 20
"""A thousand cameras need a quarter of a megabyte."""


@dataclass(frozen=True)
class FileHead(FieldHead):
    """What the header of a field file holds: the record's head, its format, cameras, and facts for display."""

    format: Literal[1] = 1
    views: ViewFacts = field(default_factory=ViewFacts)
    details: dict[str, Any] = field(default_factory=dict)


def save_field_file(path: Path, record: FieldFile, views: ViewFacts, details: dict[str, Any]) -> None:
    """Write a field and its training cameras."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in record.tensors.items()}
    if record.occupancy is not None:
        tensors["occupancy"] = record.occupancy.cpu()
    head = {"format": FORMAT, **record.head(), "views": asdict(views), "details": details}
    save_weights(tensors, path, {KEY: json.dumps(head)})


def is_field_file(path: Path) -> bool:
    """Return whether a file is safetensors containing a field."""
    return path.suffix == ".safetensors" and KEY in weights_header(path).metadata


def field_head(path: Path) -> FileHead:
    """Read the header without reading tensors.

    Raises:
        UsageError: not a field of this format, or the header is damaged.
    """
    text = weights_header(path).metadata.get(KEY)
    if text is None:
        raise UsageError(f"{path} is not an xarch field: its header has no {KEY!r}", "train one with `xarch pvd train`")
    head = parse_json(text, f"the header of {path}", max_bytes=MAX_HEAD_BYTES)
    if isinstance(head, dict) and head.get("format") != FORMAT:
        raise UsageError(f"{path} has another format version; this xarch reads {FORMAT}")
    return typed(FileHead, head, f"the header of {path}")


def load_field_file(path: Path) -> tuple[FieldFile, ViewFacts]:
    """Load the record and the cameras.

    Raises:
        UsageError: not a field of this format, damaged, or its tensors do not fit what the header says.
    """
    head = field_head(path)
    shapes = {name: entry.shape for name, entry in weights_header(path).tensors.items()}
    check_shapes(head, shapes, str(path))
    return FieldFile.from_head(head, load_weights(path), head.details), head.views
