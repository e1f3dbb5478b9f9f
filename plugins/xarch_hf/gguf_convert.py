"""Conversion of GGUF files to folders that load in seconds: dequantised to fp32 once, in the user's cache."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xarch import PlanError, UsageError, cache_dir, file_digest, new_folder, one_at_a_time, save_weights, say
from xarch_hf.checkpoint import SAFETENSORS
from xarch_hf.gguf_config import gguf_config
from xarch_hf.gguf_header import GGUFHeader, gguf_header
from xarch_hf.gguf_tokenizer import gguf_tokenizer
from xarch_hf.model import make_config
from xarch_hf.quiet import quiet
from xarch_hf.tokenizer import save_tokenizer
from xarch_hf.wording import brief, few

FORMAT = 2
"""Version of the conversion, increased when its output for a file changes."""

NOTE = "source.json"


def cached_folder(path: Path) -> Path:
    """Return the folder of a file's conversion; it depends on the file's content, not its name."""
    return cache_dir() / "gguf" / f"{file_digest(path)[:32]}-v{FORMAT}"


def is_converted(path: Path) -> bool:
    """Return whether the conversion exists; folders are created atomically."""
    return (cached_folder(path) / NOTE).is_file()


def convert(path: Path, where: str) -> Path:
    """Return the folder of a GGUF file, created on first use and only once by concurrent processes.

    Raises:
        UsageError: the file is damaged, or cannot be read faithfully.
        PlanError: the file contains tensors that the model does not use.
    """
    header = gguf_header(path)
    final = cached_folder(path)
    if (final / NOTE).is_file():
        return final
    with one_at_a_time(final.parent, say):
        if not (final / NOTE).is_file():
            for leftover in final.parent.glob(".*.tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            _convert(path, header, final, where)
    return final


def _convert(path: Path, header: GGUFHeader, final: Path, where: str) -> None:
    kinds = Counter(t.kind for t in header.tensors.values())
    values = sum(t.elements for t in header.tensors.values())
    say(f"{where}: dequantising {values / 1e6:.0f} M values to fp32, once ({few(sorted(kinds))})")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xarch-gguf-") as alone, new_folder(final) as partial:
        # Use an otherwise empty folder: transformers also reads other files beside a checkpoint.
        link = Path(alone) / "model.gguf"
        link.symlink_to(path.resolve())
        config = gguf_config(link, header, where)
        module = _read(link, config, header, where)
        (partial / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=1), encoding="utf-8")
        save_weights(dict(module.named_parameters()), partial / SAFETENSORS)
        save_tokenizer(gguf_tokenizer(link, header, where), partial)
        note = {"file": path.name, "sha256": file_digest(path), "types": dict(kinds), "format": FORMAT}
        (partial / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
    say(f"{where}: converted in {time.monotonic() - started:.0f} s, cached in {final}")


def _read(link: Path, config: dict[str, Any], header: GGUFHeader, where: str) -> nn.Module:
    """Build the module with every tensor of the file."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(link.parent),
                gguf_file=link.name,
                config=make_config(config, where),
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
            )
    except UsageError:
        raise
    except Exception as e:
        # On hostile or unusual files, the reader raises errors from numpy, gguf and torch alike.
        raise UsageError(f"{where}: transformers cannot read the tensors: {brief(e)}", "download the file again") from e
    module, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise UsageError(f"{where} lacks tensors of its architecture: {few(missing)}", "download the file again")
    filled = len(list(module.named_parameters()))
    if filled != len(header.tensors):
        raise PlanError(
            f"{where} holds {len(header.tensors)} tensors, the architecture has a use for {filled}",
            "use the transformers checkpoint of this model (hf:ID)",
        )
    return module
