"""The ``gguf:`` source: decoders in a GGUF file, through their fp32 conversion in the user's cache."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel

from xarch import SourceInfo, UsageError
from xarch_hf.checkpoint import find_checkpoint
from xarch_hf.gguf_config import gguf_config
from xarch_hf.gguf_convert import cached_folder, convert, is_converted
from xarch_hf.gguf_header import GGUFHeader, gguf_header
from xarch_hf.gguf_names import prove_tensors
from xarch_hf.gguf_tokenizer import check_tokenizer
from xarch_hf.model import Described, describe_folder
from xarch_hf.source import DecoderOptions, DecoderSource, make_teacher, random_teacher, source_info
from xarch_hf.teacher import HFTeacher


class GGUFSource(DecoderSource):
    """``gguf:FILE``."""

    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        path, where = _file(ref), f"gguf:{ref}"
        header = gguf_header(path)
        described = _describe(path, header, where, cast(DecoderOptions, options).layers)
        shapes = {name: tuple(p.shape) for name, p in described.skeleton.named_parameters()}
        prove_tensors(header, shapes, range(described.facts.layers, described.stored_layers), where)
        stored = sum(tensor.stop - tensor.start for tensor in header.tensors.values())
        details: dict[str, Any] = {
            "file": path.name,
            "name": header.metadata.get("general.name"),
            "licence": header.metadata.get("general.license"),
            "types": sorted({tensor.kind for tensor in header.tensors.values()}),
        }
        details = {key: value for key, value in details.items() if value is not None}
        info = source_info(described, path.parent, stored, details, local=False)
        return replace(info, warnings=(*info.warnings, *check_tokenizer(header, where)))

    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> HFTeacher:
        where = f"gguf:{ref}"
        folder = convert(_file(ref), where)
        described = describe_folder(folder, where, cast(DecoderOptions, options).layers)
        return make_teacher(described, find_checkpoint(folder, where), device=device, dtype=dtype)

    def random(self, ref: str, options: BaseModel, *, device: torch.device, seed: int) -> HFTeacher:
        where = f"gguf:{ref}"
        folder = convert(_file(ref), where)
        described = describe_folder(folder, where, cast(DecoderOptions, options).layers)
        return random_teacher(described, folder, device=device, seed=seed)


def _describe(path: Path, header: GGUFHeader, where: str, layers: int | None) -> Described:
    """Describe a file from its conversion if available, else from the header alone."""
    if is_converted(path):
        return describe_folder(cached_folder(path), where, layers)
    with tempfile.TemporaryDirectory(prefix="xarch-gguf-") as alone:
        link = Path(alone) / "model.gguf"
        link.symlink_to(path.resolve())
        config = gguf_config(link, header, where)
        (Path(alone) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return describe_folder(Path(alone), where, layers)


def _file(ref: str) -> Path:
    path = Path(ref).expanduser()
    if not path.is_file():
        raise UsageError(f"gguf:{ref} does not exist", "expected gguf:FILE.gguf")
    return path
