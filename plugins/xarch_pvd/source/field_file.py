"""xarch's own file format for fields: safetensors with all other data in its header."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xarch import UsageError, load_weights, save_weights, weights_header
from xarch_field.facts import ViewFacts
from xarch_pvd.source.formats.record import FieldFile

KEY = "xarch_field"
FORMAT = 1


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


def field_head(path: Path) -> dict[str, Any]:
    """Read the header without reading tensors.

    Raises:
        UsageError: not a field of this format.
    """
    text = weights_header(path).metadata.get(KEY)
    if text is None:
        raise UsageError(f"{path} is not an xarch field: its header has no {KEY!r}", "train one with `xarch pvd train`")
    try:
        head: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as e:
        raise UsageError(f"the header of {path} is damaged: {e}", "recreate the file") from e
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise UsageError(f"{path} has another format version; this xarch reads {FORMAT}")
    return head


def load_field_file(path: Path) -> tuple[FieldFile, ViewFacts]:
    """Load the record and the cameras."""
    head = field_head(path)
    tensors = load_weights(path)
    try:
        record = FieldFile.from_head(head, tensors, head["details"])
        views = ViewFacts.from_json(head["views"])
    except (KeyError, TypeError, ValueError) as e:
        raise UsageError(f"the header of {path} is damaged: {type(e).__name__}: {e}", "recreate the file") from e
    return record, views
