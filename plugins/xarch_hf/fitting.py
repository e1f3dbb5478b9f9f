"""Check by the plan that weight files fit a configuration, from their headers.

transformers itself loads tensors on device ``meta`` with the names and shapes of the stored ones. It then reports the
same missing, unused and mismatched weights as when loading the real ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xarch import PlanError, UsageError, open_regular, weights_header
from xarch_hf.architectures import Architecture
from xarch_hf.checkpoint import CheckpointFolder
from xarch_hf.quiet import quiet
from xarch_hf.wording import brief, few

DERIVED = re.compile(r"rotary_emb\.inv_freq$|attention\.(masked_)?bias$|attention\.rotary_emb\.\w+$")
"""Tensors that older checkpoints store although the configuration implies them."""
CHUNK = 1 << 24

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Fit:
    """Result of fitting stored tensors.

    Attributes:
        own_head: whether the files contain a head separate from the embedding.
    """

    own_head: bool


def prove_fit(
    skeleton: nn.Module, config: Any, architecture: Architecture, stored: Shapes, stored_layers: int, where: str
) -> Fit:
    """Check that every weight of the model is stored with its shape, and nothing else.

    Args:
        skeleton: the module on the meta device.
        config: its configuration, which determines how many layers are kept.
        stored: names and shapes in the files.
        stored_layers: layers of the files.

    Raises:
        PlanError: weights are missing, unused, or of another shape; lists them with both shapes.
    """
    tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    try:
        with quiet():
            module, report = type(skeleton).from_pretrained(  # type: ignore[attr-defined]
                None,
                config=config,
                state_dict=tensors,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                device_map="meta",
            )
    except Exception as e:
        # Names and shapes are untrusted input, which can make the library raise errors of any type.
        raise UsageError(f"{where}: the weights do not fit the configuration: {brief(e)}") from e
    check_report(report, architecture, range(config.num_hidden_layers, stored_layers), where)
    return Fit(len(list(module.parameters())) > len(list(skeleton.parameters())))


def check_report(report: Mapping[str, Any], architecture: Architecture, cut: range, where: str) -> None:
    """Reject problems that transformers reported when loading weights.

    Args:
        report: its loading info.
        cut: layers of the files that are omitted.

    Raises:
        PlanError: weights do not fit; lists their names and both shapes.
    """
    wrong = [
        f"{name} has shape {tuple(seen)} in the files, but the configuration implies {tuple(implied)}"
        for name, seen, implied in sorted(report.get("mismatched_keys") or ())
    ]
    if wrong:
        hint = "config.json belongs to other weights, or was not updated with them (vocab_size after adding tokens)"
        raise PlanError(f"{where}: {'; '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if wrong[3:] else ''}", hint)
    missing = sorted(report["missing_keys"])
    if missing:
        raise PlanError(f"{where}: the files lack weights: {few(missing)}")
    block = re.compile(re.escape(architecture.block).replace(r"\{i\}", r"(\d+)") + r"\.")

    def expected(name: str) -> bool:
        layer = block.match(name)
        return (layer is not None and int(layer.group(1)) in cut) or DERIVED.search(name) is not None

    extra = sorted(name for name in report["unexpected_keys"] if not expected(name))
    if extra:
        raise PlanError(f"{where}: the files contain weights that this architecture does not use: {few(extra)}")


def stored_shapes(checkpoint: CheckpointFolder) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of all tensors in safetensors files, from their headers."""
    return {name: entry.shape for file in checkpoint.files for name, entry in weights_header(file).tensors.items()}


def head_is_embedding(checkpoint: CheckpointFolder, architecture: Architecture) -> bool:
    """Return whether the stored head equals the stored embedding byte for byte; stops at the first difference.

    Only then does transformers tie them if the configuration says so.
    """
    head, embed = (_find(checkpoint, str(architecture.stems[stem])) for stem in ("head", "embed"))
    if head is None or embed is None or head[1] != embed[1] or head[3] != embed[3]:
        return False
    with open_regular(head[0]) as first, open_regular(embed[0]) as second:
        first.seek(head[2])
        second.seek(embed[2])
        left = head[3]
        while left:
            count = min(left, CHUNK)
            if first.read(count) != second.read(count):
                return False
            left -= count
    return True


def _find(checkpoint: CheckpointFolder, stem: str) -> tuple[Path, tuple[str, tuple[int, ...]], int, int] | None:
    """Return (file, dtype and shape, offset of its bytes, number of bytes) of a stored weight."""
    for file in checkpoint.files:
        entry = weights_header(file).tensors.get(f"{stem}.weight")
        if entry is not None:
            with open_regular(file) as stream:
                data = 8 + int.from_bytes(stream.read(8), "little")
            return file, (entry.dtype, entry.shape), data + entry.start, entry.stop - entry.start
    return None
