"""Parity of an exported decoder on real text.

The graphs are driven as on a device and compared with the student's logits for the whole prompt, which the engine
computes in one forward pass.

Legend: L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch

from xarch import Batch, Call, ExportGraph, Measure, ParityCase
from xarch_decoder.bench import LanguageGraphs
from xarch_decoder.export import graph_states
from xarch_decoder.student import DecoderStudent

DECODE_STEPS = 64
"""Number of single steps that must reproduce the whole-sequence forward pass."""

Pieces = list[tuple[str, int]]
"""Calls in order, each as (graph, tokens)."""


REL_L2 = {"int8": 0.2, "int4": 0.3}
"""Allowed deviation of logits and states with weights in so many bits, where the default would be a float's. In 8 bits
the first token of a text has 0.11 (SmolLM2-135M), a wrong graph about 1."""

MOST_KL = {"int8": 0.01, "int4": 0.05}
"""Allowed mean divergence of a case from the student, nats/token: a few dozen tokens differ more than the text by which
an export chooses bits (:mod:`xarch_decoder.divergence`)."""

ENOUGH = 32
"""Positions of a case from which its mean divergence is limited."""


def decoder_parity(
    student: DecoderStudent, graphs: Sequence[ExportGraph], batches: Sequence[Batch], dtype: str = "float32"
) -> Iterator[ParityCase]:
    """Yield prompts of several lengths through every prefill graph and ``decode_1``, and a run of single decode steps.

    Each case returns the logits of its calls, compared with the student's tap on the whole prompt, and the final
    states, compared with the student's. Caches in fixed buffers are compared over the tokens they hold.

    Args:
        graphs: from :func:`decoder_graphs`; ``decode_1`` must be among them.
        batches: held-out tokens (``input_ids``), read as one stream of text.
        dtype: of the profile's weights; few bits are judged by divergence and top-1.
    """
    text = torch.cat([batch["input_ids"].flatten().cpu() for batch in batches])
    driven = LanguageGraphs.of(graphs)
    decode = next(graph for graph in graphs if graph.name == driven.names[1])
    prefills = [graph for graph in graphs if graph.name in driven.names.values() and graph is not decode]
    context = decode.metadata["context"]
    plans: list[tuple[ExportGraph, int, Pieces]] = []
    for graph in prefills or [decode]:
        size = graph.metadata["tokens"] if prefills else DECODE_STEPS
        for length in (1, size - 1, size + 13, 2 * size + 2):
            many, rest = divmod(length, size) if prefills else (0, length)
            pieces = [(graph.name, size)] * many + [(decode.name, 1)] * rest
            plans.append((graph if many else decode, length, pieces))
    plans.append((decode, DECODE_STEPS, [(decode.name, 1)] * DECODE_STEPS))
    start = 0
    done: set[tuple[str, int]] = set()
    for graph, length, pieces in plans:
        if (context is not None and length > context) or (graph.name, length) in done:
            continue
        done.add((graph.name, length))
        yield _case(student, graph, driven, cut_text(text, start, length), pieces, dtype)
        start += length


def cut_text(text: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """Return ``length`` tokens of the stream from ``start``, wrapping around at its end: [1, L]."""
    return text[(start + torch.arange(length)) % len(text)][None]


def _case(
    student: DecoderStudent,
    graph: ExportGraph,
    driven: LanguageGraphs,
    ids_1L: torch.Tensor,
    pieces: Pieces,
    dtype: str,
) -> ParityCase:
    decoder = student.decoder
    length = ids_1L.shape[1]
    with torch.no_grad():
        _, nested = decoder.advance(ids_1L.to(decoder.embed.weight.device), 0, decoder.initial_states(), last=True)
    expected = {}
    finals = (tensor for state in nested for tensor in state)
    for state, tensor in zip(graph_states(decoder), finals, strict=True):
        expected[state.present] = tensor.cpu().numpy()

    def drive(call: Call) -> dict[str, np.ndarray]:
        return drive_prompt(call, ids_1L.numpy(), pieces, driven)

    ends = list(accumulate(tokens for _, tokens in pieces))
    given = [end - 1 for end in ends] if graph.metadata["logits"] == "last" else range(length)
    return ParityCase(
        graph.name,
        {"batch": 1, "tokens": length, "calls": len(pieces)},
        drive,
        expected,
        top1="logits",
        measures=[kl_measure(MOST_KL[dtype])] if dtype in MOST_KL and len(given) >= ENOUGH else [],
        rel_l2=REL_L2.get(dtype),
        batch=Batch({"input_ids": ids_1L}, length),
        taps={"logits": "logits"},
        positions={"logits": (1, given)},
    )


def kl_measure(most: float) -> Measure:
    """Return the mean divergence of the found distributions from the student's, and its limit in nats/token."""
    return Measure("kl", _kl, maximum=most, unit="nats/token")


def _kl(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    p, q = (_log_softmax(side["logits"].astype(np.float64)) for side in (wanted, found))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def drive_prompt(
    call: Call,
    ids_1L: np.ndarray,
    pieces: Pieces,
    driven: LanguageGraphs,
    position: int = 0,
    held: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Read a prompt in the given pieces, using only numpy and the exported graphs.

    Args:
        position: tokens of the prompt that are not read because ``held`` contains them.
        held: states to begin with; None before the first token.

    Returns:
        ``logits`` [1, N, V] of the N positions that the calls return, and the final states under their output names.
    """
    found = dict(held or driven.initial())
    logits = []
    for _, tokens in pieces:
        given, found = driven.step(call, ids_1L[0, position : position + tokens], position, found)
        logits.append(given)
        position += tokens
    final = {}
    for s in driven.states:
        axis = s["tokens_axis"]
        value = found[s["name"]]
        final[s["present"]] = value if axis is None else value.take(range(position), axis)
    return {"logits": np.concatenate(logits, 1), **final}
