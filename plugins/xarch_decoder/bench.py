"""Benchmarks of an exported language student: time to first token and tokens per second at several lengths.

The graphs are driven by their own metadata, as on a device: a prompt takes a few prefill calls followed by single
steps, and states are passed from one call to the next.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xarch import BenchCase, Call, ExportGraph, UsageError, graph_metadata

PROMPTS = (1, 64, 256)
"""Prompt lengths in tokens."""

CONTEXTS = (0, 256, 1024, 4096)
"""Context lengths in tokens at which decode speed is measured."""

DECODED = 32
"""Tokens per decode measurement."""

LEAST_ROOM = 64
"""Tokens for which a state has room when it runs out of it first."""

States = dict[str, np.ndarray]


class LanguageGraphs:
    """``decode_1`` and every ``prefill_T`` of an export, with their states.

    Args:
        metadata: graph name -> its ``xarch.`` metadata; graphs with ``states`` and ``tokens`` are used, one of which
            must read a single token.
        point: those named GRAPH-POINT are used; "": those that have no such ending.

    Raises:
        UsageError: another version of xarch wrote them.
    """

    def __init__(self, metadata: Mapping[str, Mapping[str, str]], point: str = "") -> None:
        metadata = {name: facts for name, facts in metadata.items() if name.partition("-")[2] == point}
        self.names = {int(facts["xarch.tokens"]): name for name, facts in metadata.items() if is_language(facts)}
        decode = metadata[self.names[1]]
        self.fold: dict[str, Any] | None = json.loads(decode.get("xarch.fold", "null"))
        used = [*self.names.values(), *([self.fold["graph"]] if self.fold else [])]
        old = [name for name in used if "xarch.reads" not in metadata.get(name, {})]
        if old:
            raise UsageError(
                f"graph {old[0]!r} does not say which states it reads: another version of xarch wrote it",
                "xarch export RUN writes the graphs again",
            )
        self.reads = {name: json.loads(metadata[name]["xarch.reads"]) for name in used}
        self.gives = {name: json.loads(metadata[name]["xarch.gives"]) for name in used}
        self.states: list[dict[str, Any]] = json.loads(decode["xarch.states"])
        self.logits: str = decode.get("xarch.logits", "last")
        self.vocab = int(decode.get("xarch.vocab", 1))
        self.context: int | None = json.loads(decode.get("xarch.context", "null"))
        self.sizes = sorted(self.names, reverse=True)

    @classmethod
    def of(cls, graphs: Sequence[ExportGraph]) -> LanguageGraphs:
        """Return the graphs of an export that is not written yet, all of the point of the first."""
        metadata = {g.name: {f"xarch.{k}": _text(v) for k, v in g.metadata.items()} for g in graphs}
        return cls(metadata, graphs[0].name.partition("-")[2])

    def initial(self, tokens: int = 0, room: int = 0) -> States:
        """Return states as if ``tokens`` had been read: caches have that length, values are the initial ones.

        Args:
            room: for further tokens, in states that need it; others grow.
        """
        held = {}
        for state in self.states:
            shape, axis = list(state["shape"]), state.get("tokens_axis")
            if axis is not None and self.context is None:
                shape[axis] = tokens + room * (shape[axis] < 0)
            held[state["name"]] = np.full(shape, state["fill"], state["dtype"])
        return held

    def roomy(self, held: States, tokens: int) -> States:
        """Return states with room for ``tokens`` tokens in all, copied where it is used up."""
        found = dict(held)
        for state in self.states:
            axis, value = state.get("tokens_axis"), held[state["name"]]
            if axis is not None and state["shape"][axis] < 0 and value.shape[axis] < tokens:
                shape = [*value.shape[:axis], max(tokens, LEAST_ROOM, 2 * value.shape[axis]), *value.shape[axis + 1 :]]
                found[state["name"]] = made = np.full(shape, state["fill"], value.dtype)
                made[(slice(None),) * axis + (slice(value.shape[axis]),)] = value
        return found

    def step(self, call: Call, ids: np.ndarray, position: int, held: States) -> tuple[np.ndarray, States]:
        """Read ``ids`` [L], L one of ``sizes``, after a fold where one is due; return (logits, new states)."""
        if self.fold and position % self.fold["every"] == 0:
            held = self.folded(call, position, held)
        held = self.roomy(held, position + len(ids))
        given = {"input_ids": ids[None], "position": np.array([position])}
        out, held = self._call(call, self.names[len(ids)], given, held)
        return out["logits"], held

    def folded(self, call: Call, position: int, held: States) -> States:
        """Make the fold that is due before the token at ``position``; return the states after it."""
        assert self.fold is not None
        return self._call(call, self.fold["graph"], {"position": np.array([position])}, held)[1]

    def _call(
        self, call: Call, graph: str, inputs: dict[str, np.ndarray], held: States
    ) -> tuple[dict[str, np.ndarray], States]:
        """Make one call; return its outputs, and all states after it."""
        out = call(graph, inputs | {name: held[name] for name in self.reads[graph]})
        return out, held | {name: out[f"present_{name}"] for name in self.gives[graph]}

    def pieces(self, length: int) -> list[int]:
        """Return the number of tokens in each call that reads a prompt."""
        sizes: list[int] = []
        while length > 0:
            sizes.append(next(s for s in self.sizes if s <= length))
            length -= sizes[-1]
        return sizes

    def graphs_of(self, pieces: Sequence[int]) -> tuple[str, ...]:
        """Return the names of the graphs that reading such pieces calls."""
        folds = [self.fold["graph"]] if self.fold else []
        return tuple(dict.fromkeys([*(self.names[size] for size in pieces), *folds]))

    def read(self, call: Call, ids: np.ndarray) -> States:
        """Read a whole prompt from the initial states."""
        held, position = self.initial(room=len(ids)), 0
        for size in self.pieces(len(ids)):
            _, held = self.step(call, ids[position : position + size], position, held)
            position += size
        return held

    def decode(self, call: Call, context: int, held: States) -> None:
        """Decode :data:`DECODED` tokens greedily, one at a time, after ``context`` tokens."""
        token = np.zeros(1, np.int64)
        for i in range(DECODED):
            logits, held = self.step(call, token, context + i, held)
            token = logits[0, -1:].argmax(-1)

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of all states after ``tokens`` tokens."""
        return sum(value.nbytes for value in self.initial(tokens).values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def is_language(facts: Mapping[str, str]) -> bool:
    """Return whether a graph's metadata describes a step over tokens with explicit states."""
    return facts.get("xarch.family") == "decoder" and "xarch.tokens" in facts and "xarch.states" in facts


def language_cases(graphs: Sequence[str], folder: Path) -> Iterator[BenchCase]:
    """Yield time to first token at :data:`PROMPTS` and decoding after :data:`CONTEXTS`, as far as they fit.

    Args:
        graphs: names of the exported graphs in ``folder``.
    """
    metadata = {name: graph_metadata(folder / f"{name}.onnx") for name in graphs}
    if not any(is_language(facts) and facts["xarch.tokens"] == "1" for facts in metadata.values()):
        return
    driven = LanguageGraphs(metadata)
    fits = driven.context or max(CONTEXTS) + DECODED
    ids = np.random.default_rng(0).integers(0, driven.vocab, max(PROMPTS))
    for length in (n for n in PROMPTS if n <= fits):
        pieces = driven.pieces(length)
        used = driven.graphs_of(pieces)
        drive = functools.partial(driven.read, ids=ids[:length])
        figures = {"calls": float(len(pieces))}
        yield BenchCase(f"first token, prompt of {length}", "token", length, used, drive, figures)
    for context in (n for n in CONTEXTS if n + DECODED <= fits):
        more = functools.partial(driven.decode, context=context, held=driven.initial(context, DECODED))
        figures = {"state_bytes": float(driven.state_bytes(context))}
        yield BenchCase(f"decode after {context}", "token", DECODED, driven.graphs_of([1]), more, figures)
