"""Stage kind ``allocate``: divide a budget of state bytes among the key/value heads of all layers.

The teacher runs once over a few rows. For every head and several sizes of its memory, the error is what its output
projection adds to the residual stream in place of the exact attention, relative to the stream. Errors of one kind of
memory rank heads well. A Lagrange multiplier then prices bytes so that the budget is used.

Legend: B batch, L tokens, D width, H heads, K key/value heads, E head width, G heads that share a key/value head,
I = G E.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, Options, Sink, StageContext, StageKind, StageOutcome, StageRequest, UsageError
from xarch.kernels import FoldedRanges, folded_memory
from xarch_decoder.model.decoder import make_sequence
from xarch_decoder.model.folded import FoldedAttention
from xarch_memory.options import Sizes
from xarch_memory.student import MemoryStudent

FACTORS = (0.1, 0.2, 0.4, 0.7, 1.0, 1.6, 2.5, 4.0)
"""Sizes that are measured, relative to the mean."""

FLOOR = 1e-12
"""Error of a memory that holds every token of the rows."""

ROOM = 1.25
"""Largest number of 8 bits, relative to the largest key or value of a channel that was seen."""

Table = dict[int, np.ndarray]
"""Layer -> errors [K, sizes]."""


class AllocateOptions(Options):
    """Options of an ``allocate`` stage."""

    tokens: int = Field(4096, ge=1, le=10**9, description="number of training tokens to measure on")


class Allocate(StageKind):
    """Decides ``entries``, the entries of every key/value head. Trains nothing."""

    Options = AllocateOptions

    def units(self, request: StageRequest) -> int:
        return int(request.options.tokens)

    def work(self, request: StageRequest, *, student: float, teacher: float) -> float:
        """The teacher once, and each memory in eight sizes: a quarter of a pass where its kernel is compiled."""
        return teacher + len(FACTORS) * student / 4

    def run(self, context: StageContext) -> StageOutcome:
        student = context.student
        if not isinstance(student, MemoryStudent):
            raise UsageError(
                f"stage kind allocate supports only students of target memory, got a {type(student).__name__}"
            )
        if context.teacher is None:
            raise UsageError("stage kind allocate needs a teacher, but this run has none")
        sizes, wanted = measured_sizes(student), context.options.tokens
        probe = ErrorProbe(student, sizes, context.run_teacher)
        stream = context.batches()
        while probe.tokens < wanted:
            for sample in next(stream).split(1):
                if probe.tokens < wanted:
                    probe.measure(sample)
                    context.progress(min(probe.tokens, wanted), wanted)
        table = probe.table()
        entries = allocated(table, sizes, student.sizes, student.budget)
        used = sum(student.sizes.bytes(n) for layer in entries.values() for n in layer)
        heads = [n for layer in entries.values() for n in layer]
        before = predicted(table, sizes, {i: [student.sizes.most(_share(student))] * len(t) for i, t in table.items()})
        return StageOutcome(
            metrics={
                "tokens": float(probe.tokens),
                "state_bytes": float(used),
                "state_bytes_a_layer": used / len(entries),
                "entries_smallest": float(min(heads)),
                "entries_largest": float(max(heads)),
                "error": predicted(table, sizes, entries),
                "error_uniform": before,
            },
            decisions={"entries": {str(layer): found for layer, found in entries.items()}},
            per_site={"entries": {f"blocks.{i}": sum(found) / len(found) for i, found in entries.items()}},
        )


def measured_sizes(student: MemoryStudent) -> list[int]:
    """Return the entries of a head for which errors are measured, in ascending order."""
    mean = student.sizes.most(_share(student))
    return sorted({max(student.sizes.least, round(mean * factor)) for factor in FACTORS})


def _share(student: MemoryStudent) -> int:
    return student.budget // (len(student.replaced) * student.facts.kv_heads)


class ErrorProbe:
    """Errors of every head at every size, as means over tokens.

    Args:
        student: holds the teacher's weights.
        sizes: entries of a head.
        run_teacher: pushes taps of a batch in forward order: (batch, wanted, sink).
    """

    def __init__(
        self, student: MemoryStudent, sizes: Sequence[int], run_teacher: Callable[[Batch, Collection[str], Sink], None]
    ) -> None:
        self.student, self.sizes, self.run_teacher = student, sizes, run_teacher
        heads = student.facts.kv_heads
        self.sums: Table = {layer: np.zeros((heads, len(sizes))) for layer in student.replaced}
        self.ranges: dict[int, _Ranges] = {layer: _Ranges() for layer in student.replaced}
        self.tokens = 0

    def table(self) -> Table:
        """Return the errors."""
        return {layer: sums / self.tokens for layer, sums in self.sums.items()}

    @torch.no_grad()
    def measure(self, sample: Batch) -> None:
        """Measure one row, layer by layer as the teacher reaches them."""
        sequence = make_sequence(sample["input_ids"], sample.get("segment_ids"))
        streams: dict[str, Tensor] = {}

        def push(name: str, value: Any) -> None:
            block, leaf = name.rsplit(".", 1)
            if leaf == "input":
                streams[block] = value
                return
            layer = int(block.rsplit(".", 1)[-1])
            memory = self.student.memory(layer)
            operands = memory.operands(value.float(), sequence)
            self.ranges[layer].see(*operands, memory.kv_heads)
            memory.set_ranges(self.ranges[layer].found())
            self.sums[layer] += self._errors(memory, operands, streams.pop(block), sequence)

        wanted = {f"blocks.{layer}.{leaf}" for layer in self.sums for leaf in ("input", "mixer_in")}
        self.run_teacher(sample.seen_by("teacher"), wanted, push)
        self.tokens += sample["input_ids"].numel()

    def _errors(
        self, memory: FoldedAttention, operands: tuple[Tensor, Tensor, Tensor], stream_BLD: Tensor, sequence: Any
    ) -> np.ndarray:
        exact_BLHE = memory.exact(*operands, sequence)
        heads = memory.kv_heads
        projection_DKI = memory.o.weight.float().unflatten(1, (heads, -1))
        gram_KII = torch.einsum("dki,dkj->kij", projection_DKI, projection_DKI)
        # Few tokens hold nearly all of the stream's squared norm, and the next norm sees directions only.
        weight_BL = 1.0 / stream_BLD.float().square().sum(-1).clamp_min(1e-12)
        columns = []
        for size in self.sizes:
            layout = self.student.sizes.layout([size] * heads)
            found = folded_memory(*operands, sequence.positions_BL, layout, memory.rotary, memory.ranges)
            apart_BLKI = (found - exact_BLHE).unflatten(2, (heads, -1)).flatten(3)
            added_BLKI = torch.einsum("blki,kij->blkj", apart_BLKI, gram_KII)
            squared_BLK = (added_BLKI * apart_BLKI).sum(-1)
            columns.append((squared_BLK * weight_BL[:, :, None]).sum((0, 1)).double().cpu().numpy())
        return np.stack(columns, 1) if columns else np.zeros((heads, 0))


class _Ranges:
    """Largest keys and values of every channel, and the mean square of queries, of the tokens seen."""

    def __init__(self) -> None:
        self.key_KE: Tensor | None = None
        self.value_KE: Tensor | None = None
        self.query_KG: Tensor | None = None
        self.tokens = 0

    def see(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, heads: int) -> None:
        """Take in the operands of one row."""
        key_KE, value_KE = (x.float().abs().amax((0, 1)) for x in (k_BLKE, v_BLKE))
        query_KG = q_BLHE.float().square().sum(-1).sum((0, 1)).unflatten(0, (heads, -1))
        if self.key_KE is not None and self.value_KE is not None and self.query_KG is not None:
            key_KE, value_KE = key_KE.maximum(self.key_KE), value_KE.maximum(self.value_KE)
            query_KG = query_KG + self.query_KG
        self.key_KE, self.value_KE, self.query_KG = key_KE, value_KE, query_KG
        self.tokens += q_BLHE.shape[0] * q_BLHE.shape[1]

    def found(self) -> FoldedRanges:
        """Return scales of 8 bits that leave room beyond what was seen, and the mean square."""
        assert self.key_KE is not None
        assert self.value_KE is not None
        assert self.query_KG is not None
        key_KE, value_KE = (x_KE.clamp_min(1e-6) * ROOM / 127 for x_KE in (self.key_KE, self.value_KE))
        return FoldedRanges(key_KE, value_KE, self.query_KG / self.tokens)


def allocated(table: Table, measured: Sequence[int], sizes: Sizes, budget: int) -> dict[int, list[int]]:
    """Return layer -> entries of each head with the smallest sum of errors within ``budget`` bytes.

    Errors between measured sizes are interpolated in logarithms.
    """
    choices = np.unique(np.round(np.geomspace(measured[0], measured[-1], 160)).astype(int))
    costs = np.array([sizes.bytes(int(n)) for n in choices], dtype=float)
    errors = {layer: np.stack([_between(measured, row, choices) for row in rows]) for layer, rows in table.items()}

    def chosen(price: float) -> dict[int, np.ndarray]:
        return {layer: (rows + price * costs).argmin(1) for layer, rows in errors.items()}

    def spent(found: Mapping[int, np.ndarray]) -> float:
        return float(sum(costs[places].sum() for places in found.values()))

    low, high = -30.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if spent(chosen(math.exp(middle))) <= budget else (middle, high)
    return {layer: [int(n) for n in choices[places]] for layer, places in chosen(math.exp(high)).items()}


def predicted(table: Table, measured: Sequence[int], entries: Mapping[int, list[int]]) -> float:
    """Return the sum of all heads' errors at given entries."""
    rows = [(row, n) for layer, found in entries.items() for row, n in zip(table[layer], found, strict=True)]
    return float(sum(_between(measured, row, np.array([n]))[0] for row, n in rows))


def _between(measured: Sequence[int], errors: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    # More entries never cost: noise must not make a smaller memory look better.
    falling = np.minimum.accumulate(np.maximum(errors, FLOOR))
    found: np.ndarray = np.exp(np.interp(np.log(wanted), np.log(np.asarray(measured)), np.log(falling)))
    return found
