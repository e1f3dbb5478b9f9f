"""Which weights have the few bits of a profile and which 8: measured, kind by kind, until predictions are close enough.

Weights whose names differ only in numbers are of one kind (a projection in all layers). If all of them in few bits
diverge too much, each kind is measured alone, and those that cost most for the bytes they save get 8 bits first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from xarch.contracts.chain import Chain
from xarch.contracts.export import Divergence, ExportGraph
from xarch.export.blocks import narrow_weights
from xarch.export.grids import packed4, restored4
from xarch.export.structure import named_tensors

Measure = Callable[[set[str]], float]
"""Kinds in few bits, the rest as it was -> divergence."""


@dataclass(frozen=True)
class Choice:
    """Weights that get 8 bits, and what was measured: empty where nothing was."""

    wide: frozenset[str] = frozenset()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return what was measured in a line."""
        f = self.figures
        kept = f"8 bits: {', '.join(f['wide'])}; divergence" if f["wide"] else "divergence"
        return f"{kept} {f['chosen']:.3g} {f['unit']}, at most {f['most']:g} ({f['narrow']:.3g} with all in few bits)"


def choose(models: Mapping[str, ir.Model], graphs: Sequence[ExportGraph], divergence: Divergence) -> Choice:
    """Return the weights whose products need 8 bits.

    Args:
        models: of the graphs, in float32; weights are named as in the student.
        divergence: of the student, now. Its weights are exchanged while it is measured, and restored.
    """
    tensors: dict[str, Tensor] = {}
    for graph in graphs:
        owner = graph.module.owner if isinstance(graph.module, Chain) else graph.module
        tensors |= named_tensors(owner)
    sizes: dict[str, int] = {}
    for model in models.values():
        sizes |= narrow_weights(model)
    kinds: dict[str, list[str]] = {}
    for name in sorted(set(sizes) & set(tensors)):
        kinds.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    rounded = {name: _rounded(tensors[name], sizes[name]) for names in kinds.values() for name in names}

    def measure(narrow: set[str]) -> float:
        with _exchanged({name: (tensors[name], rounded[name]) for kind in narrow for name in kinds[kind]}):
            return divergence.measure()

    weights = {kind: sum(tensors[name].numel() for name in names) for kind, names in kinds.items()}
    wide, figures = widened(weights, measure, divergence.most)
    chosen = frozenset(name for kind in wide for name in kinds[kind])
    told = {"unit": divergence.unit, "most": divergence.most, "wide": wide, **figures}
    return Choice(chosen, {k: _short(v) for k, v in told.items()})


def widened(weights: Mapping[str, int], measure: Measure, most: float) -> tuple[list[str], dict[str, Any]]:
    """Return the kinds that get 8 bits, those that gain most for their weights first, and the figures.

    Args:
        weights: kind -> number of weights.
        measure: divergence with some kinds in few bits.
        most: largest divergence; where no choice reaches it, all kinds get 8 bits.
    """
    wide: list[str] = []
    found = all_narrow = measure(set(weights))
    if not weights or found <= most:
        return wide, {"narrow": all_narrow, "chosen": found}
    alone = {kind: measure({kind}) for kind in weights}
    order = sorted(weights, key=lambda kind: alone[kind] / weights[kind], reverse=True)
    while order and found > most:
        # What kinds cost alone adds up to about what they cost together.
        left = found
        while order and left > most:
            wide.append(order.pop(0))
            left -= alone[wide[-1]]
        found = measure(set(order)) if order else 0.0
    return wide, {"narrow": all_narrow, "alone": alone, "chosen": found}


def _rounded(weight: Tensor, size: int) -> Tensor:
    given_NK = weight.detach().float().cpu().numpy()
    numbers = torch.from_numpy(restored4(packed4(given_NK, size), given_NK.shape[1], size))
    return numbers.to(device=weight.device, dtype=weight.dtype).reshape(weight.shape)


@contextmanager
def _exchanged(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    kept = [(tensor, tensor.data) for tensor, _ in pairs.values()]
    try:
        for tensor, other in pairs.values():
            tensor.data = other
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return round(value, 6) if isinstance(value, float) else value
