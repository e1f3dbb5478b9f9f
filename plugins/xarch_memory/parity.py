"""Parity of an exported memory student: its predictions, and its states before the first merge.

What a memory merges is a choice of entries. Where two are nearly equal, rounding decides, and the states of two correct
runs differ from then on, while their distributions hardly do. So states are compared before the first merge, and after
few merges, with a wide limit, where a graph reads more tokens at once than the smallest memory holds.

Legend: L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
"""Allowed mean divergence, nats/token, of a case before the first merge or from the same states."""

LEAST_TOP1 = {"float32": 0.99, "int8": 0.97}
"""Smallest share of the same most likely tokens there: rounding to 8 bits decides near ties."""

MERGED, MERGED_KL, MERGED_TOP1 = 0.5, 0.03, 0.94
"""The same for states, divergence and tokens after merges, against the student from the first token on: two correct
runs make other merges, and differ by up to 0.018 nats/token (`benchmarks/notes.md`). Cases with full memories that go
on from the student's own states have the limits above, and compare queries after one fold."""

ONE_FOLD = 0.01
"""Allowed deviation of the states after one fold and one call from full memories."""

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
    assert driven.fold is not None
    one, folds = by_name[driven.names[1]], by_name[driven.fold["graph"]]
    # As long as no memory is full nothing is merged, and states are comparable; after whole folds, since nobody reads
    # what lies behind the last token.
    unmerged = min(held) // fold * fold
    yield _case(student, one, driven, text, 0, [(one.name, 1)] * min(steps, unmerged), dtype=dtype)
    yield _case(student, folds, driven, text, 0, [(one.name, 1)] * min(2 * fold, unmerged), dtype=dtype)
    for size in driven.sizes:
        if size > 1:
            graph = by_name[driven.names[size]]
            pieces = [(graph.name, size)] * (1 + (2 * size <= min(held)))
            merges = size > min(held)
            yield _case(student, graph, driven, text, 0, pieces, dtype=dtype, merges=merges)
    # One text for all cases with full memories, one after another: the student reads it once.
    # A graph that reads many tokens gives few predictions: so many single ones follow that their share says a thing.
    after = fold + 3
    ids_1L = cut_text(text, 0, full + max(steps, 2 * driven.sizes[0] + after))
    late = Full(Batch({"input_ids": ids_1L}, ids_1L.shape[1]), full, _states(student, ids_1L[:, :full]))
    for size in driven.sizes:
        graph = by_name[driven.names[size]]
        pieces = [(graph.name, size)] * (2 * (size > 1)) + [(one.name, 1)] * after
        yield _continued(student, graph, driven, late, pieces, dtype)
        yield _one_fold(student, graph, driven, late, size, dtype)
    yield _case(student, folds, driven, text, late, [(one.name, 1)] * steps, dtype=dtype, merges=True)


def _case(
    student: MemoryStudent,
    graph: ExportGraph,
    driven: LanguageGraphs,
    text: torch.Tensor,
    begin: Full | Literal[0],
    pieces: Pieces,
    *,
    dtype: str,
    merges: bool = False,
) -> ParityCase:
    """Return a case that begins with the first token, or with full memories.

    Args:
        text: of a case that begins with the first token.
        merges: what is compared has merged by itself.
    """
    precision = next(iter(student.layouts().values())).precision
    past, held = (begin.past, begin.states) if begin else (0, None)
    length = past + sum(tokens for _, tokens in pieces)
    ids_1L = begin.batch["input_ids"][:, :length] if begin else cut_text(text, 0, length)

    def drive(call: Call) -> dict[str, np.ndarray]:
        found = drive_prompt(call, ids_1L.numpy(), pieces, driven, past, held)
        return {"logits": found["logits"]} if begin else found

    ends = list(np.cumsum([tokens for _, tokens in pieces]) + past)
    given = [int(end) - 1 for end in ends] if driven.logits == "last" else range(past, length)
    return ParityCase(
        graph.name,
        {"batch": 1, "past": past, "tokens": length - past, "calls": len(pieces)},
        drive,
        {} if begin else {f"present_{name}": value for name, value in _states(student, ids_1L).items()},
        top1="logits",
        measures=[kl_measure(max(MERGED_KL if merges else MOST_KL[precision], weights.MOST_KL.get(dtype, 0.0)))],
        rel_l2=max(MERGED if merges else REL_L2[precision], weights.REL_L2.get(dtype, 0.0)),
        least_top1=(MERGED_TOP1 if merges else LEAST_TOP1[precision]) if dtype == "float32" else None,
        batch=begin.batch if begin else Batch({"input_ids": ids_1L}, length),
        taps={"logits": "logits"},
        positions={"logits": (1, given)},
    )


def _continued(
    student: MemoryStudent, graph: ExportGraph, driven: LanguageGraphs, late: Full, pieces: Pieces, dtype: str
) -> ParityCase:
    """Return a case with full memories that is compared with the student going on from the same states: what the two
    forms of the student merged before does not count."""
    ids_1L = late.batch["input_ids"]
    case = _case(student, graph, driven, ids_1L[0], late, pieces, dtype=dtype)
    given = [place - late.past for place in case.positions["logits"][1]]
    ids_1L = ids_1L[:, : late.past + case.shape["tokens"]]
    wanted_1LV, _ = _advanced(student, ids_1L, late)
    return replace(
        case, expected={"logits": wanted_1LV[:, given].float().cpu().numpy()}, batch=None, taps={}, positions={}
    )


def _one_fold(
    student: MemoryStudent, graph: ExportGraph, driven: LanguageGraphs, late: Full, size: int, dtype: str
) -> ParityCase:
    """Return a case that makes one fold and one call of a graph from full memories. Slots of nearly the same importance
    change places, so it compares what does not depend on their order: queries, each of which every memory of the layers
    before has led to, and how many tokens slots hold and where these were."""
    ids_1L = late.batch["input_ids"][:, : late.past + size]

    def drive(call: Call) -> dict[str, np.ndarray]:
        found = drive_prompt(call, ids_1L.numpy(), [(graph.name, size)], driven, late.past, late.states)
        return _unordered({name.removeprefix("present_"): value for name, value in found.items()})

    shape = {"batch": 1, "past": late.past, "tokens": size, "calls": 2}
    return ParityCase(
        graph.name,
        shape,
        drive,
        _unordered(_states(student, ids_1L, late)),
        rel_l2=max(ONE_FOLD, weights.REL_L2.get(dtype, 0.0)),
    )


def _unordered(states: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {f"present_{name}": value for name, value in states.items() if name.startswith("query.")}
    counts = [(value[:, 0], value[:, 1]) for name, value in states.items() if name.startswith("facts.")]
    return found | {"tokens": np.array([(n.sum(-1), (n * place).sum(-1)) for n, place in counts])}


def _states(student: MemoryStudent, ids_1L: torch.Tensor, begin: Full | None = None) -> dict[str, np.ndarray]:
    """Return the student's states after all tokens, from the first one or from where ``begin`` left off."""
    return _advanced(student, ids_1L, begin, last=True)[1]


def _advanced(
    student: MemoryStudent, ids_1L: torch.Tensor, begin: Full | None, *, last: bool = False
) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Return the student's logits [1, L, V] for the tokens from where ``begin`` left off, or the last one's, and its
    states after them."""
    decoder = student.decoder
    device, past = decoder.embed.weight.device, 0 if begin is None else begin.past
    states = decoder.initial_states()
    if begin is not None:
        known = iter(torch.from_numpy(value).to(device) for value in begin.states.values())
        states = tuple(tuple(next(known) for _ in state) for state in states)
    with torch.no_grad():
        logits_1LV, states = decoder.advance(ids_1L[:, past:].to(device), past, states, last=last)
    finals = (tensor for state in states for tensor in state)
    return logits_1LV, {state.name: t.cpu().numpy() for state, t in zip(graph_states(decoder), finals, strict=True)}
