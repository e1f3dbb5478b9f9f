"""Parity of an exported memory student: its predictions, and its states before the first merge.

What a memory merges is a choice of entries. Where two are nearly equal, rounding decides, and the states of two correct
runs differ from then on, while their distributions hardly do. So states are compared before the first merge, and after
few merges, with a wide limit, where a graph reads more tokens at once than the smallest memory holds.

Legend: L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from xarch import Batch, Call, ExportGraph, ParityCase
from xarch_decoder import parity as weights
from xarch_decoder.bench import LanguageGraphs
from xarch_decoder.export import graph_states
from xarch_decoder.parity import DECODE_STEPS, Pieces, cut_text, drive_prompt, kl_measure
from xarch_memory.student import MemoryStudent

REL_L2 = {"float32": 1e-2, "int8": 0.1}
"""Allowed deviation of logits and states, by the precision of the window: what rounds the other way in one layer makes
more of it do so in the next (SmolLM2-135M with 8 bits: states 0.06 in layer 29, logits 0.013, top-1 the same)."""

MOST_KL = {"float32": 1e-4, "int8": 3e-3}
"""Allowed mean divergence of a case before the first merge, nats/token."""

LEAST_TOP1 = {"float32": 0.99, "int8": 0.97}
"""Smallest share of the same most likely tokens there: rounding to 8 bits decides near ties."""

MERGED, MERGED_KL, MERGED_TOP1 = 0.5, 0.03, 0.94
"""The same for states, divergence and tokens after merges. Embeddings that differ by 1e-6 in relation lead SmolLM2-135M,
all layers in 168 kB, to other merges and a divergence of 0.004 after 700 tokens, 0.018 after 1,300; two runs of the
student in pieces of other sizes differ as much. A wrong graph differs by more than 0.1."""

AFTER = 2
"""Folds with merges in each head before the case with full memories begins."""


@dataclass(frozen=True)
class Full:
    """The student's own states after ``past`` tokens of a batch, when every head has merged."""

    batch: Batch
    past: int
    states: dict[str, np.ndarray]


def memory_parity(
    student: MemoryStudent,
    graphs: Sequence[ExportGraph],
    batches: Sequence[Batch],
    steps: int = DECODE_STEPS,
    dtype: str = "float32",
) -> Iterator[ParityCase]:
    """Yield single steps from the first token, single steps with full memories, and prompts through prefill graphs.

    Args:
        graphs: from ``decoder_graphs``.
        batches: held-out tokens (``input_ids``), read as one stream of text.
        steps: of the cases with single steps.
        dtype: of the profile's weights.
    """
    text = torch.cat([batch["input_ids"].flatten().cpu() for batch in batches])
    driven = LanguageGraphs.of(graphs)
    by_name = {graph.name: graph for graph in graphs}
    layouts = student.layouts().values()
    fold = next(iter(layouts)).fold
    held = [slots + window for layout in layouts for slots, window in zip(layout.slots, layout.windows, strict=True)]
    full = (AFTER + -(-max(held) // fold)) * fold
    one = by_name[driven.names[1]]
    # As long as no memory is full nothing is merged, and states are comparable.
    yield _case(
        student, one, driven, text, 0, [(one.name, 1)] * min(steps, min(held) // fold * fold), dtype=dtype, states=True
    )
    for size in driven.sizes:
        if size > 1:
            graph = by_name[driven.names[size]]
            pieces = [(graph.name, size)] * (1 + (2 * size <= min(held)))
            merges = size > min(held)
            yield _case(student, graph, driven, text, 0, pieces, dtype=dtype, states=True, merges=merges)
    # One text for all cases with full memories, one after another: the student reads it once.
    ids_1L = cut_text(text, 0, full + max(steps, 2 * driven.sizes[0] + 3))
    late = Full(Batch({"input_ids": ids_1L}, ids_1L.shape[1]), full, _states(student, ids_1L[:, :full]))
    for size in driven.sizes:
        graph = by_name[driven.names[size]]
        pieces = [(graph.name, size)] * 2 + [(one.name, 1)] * 3 if size > 1 else [(one.name, 1)] * steps
        yield _case(student, graph, driven, text, late, pieces, dtype=dtype)


def _case(
    student: MemoryStudent,
    graph: ExportGraph,
    driven: LanguageGraphs,
    text: torch.Tensor,
    begin: Full | Literal[0],
    pieces: Pieces,
    *,
    dtype: str,
    states: bool = False,
    merges: bool = False,
) -> ParityCase:
    """Return a case that begins with the first token, or with full memories.

    Args:
        text: of a case that begins with the first token.
        states: compare the last states.
        merges: they come after merges.
    """
    precision = next(iter(student.layouts().values())).precision
    merged = bool(begin) or merges
    past, held = (begin.past, begin.states) if begin else (0, None)
    length = past + sum(tokens for _, tokens in pieces)
    ids_1L = begin.batch["input_ids"][:, :length] if begin else cut_text(text, 0, length)

    def drive(call: Call) -> dict[str, np.ndarray]:
        found = drive_prompt(call, ids_1L.numpy(), pieces, driven, past, held)
        return found if states else {"logits": found["logits"]}

    ends = list(np.cumsum([tokens for _, tokens in pieces]) + past)
    given = [int(end) - 1 for end in ends] if graph.metadata["logits"] == "last" else range(past, length)
    return ParityCase(
        graph.name,
        {"batch": 1, "past": past, "tokens": length - past, "calls": len(pieces)},
        drive,
        {f"present_{name}": value for name, value in _states(student, ids_1L).items()} if states else {},
        top1="logits",
        measures=[kl_measure(max(MERGED_KL if merged else MOST_KL[precision], weights.MOST_KL.get(dtype, 0.0)))],
        rel_l2=max(MERGED if merged else REL_L2[precision], weights.REL_L2.get(dtype, 0.0)),
        least_top1=(MERGED_TOP1 if merged else LEAST_TOP1[precision]) if dtype == "float32" else None,
        batch=begin.batch if begin else Batch({"input_ids": ids_1L}, length),
        taps={"logits": "logits"},
        positions={"logits": (1, given)},
    )


def _states(student: MemoryStudent, ids_1L: torch.Tensor) -> dict[str, np.ndarray]:
    decoder = student.decoder
    with torch.no_grad():
        _, nested = decoder.advance(ids_1L.to(decoder.embed.weight.device), 0, decoder.initial_states(), last=True)
    finals = (tensor for state in nested for tensor in state)
    return {state.name: t.cpu().numpy() for state, t in zip(graph_states(decoder), finals, strict=True)}
