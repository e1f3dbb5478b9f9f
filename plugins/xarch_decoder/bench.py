"""Figures of an exported language student: time to the first token, tokens per second, size of its memory.

The graphs are driven from their own metadata, as on a device: a prompt is a few prefill calls and the rest single
steps, states go from one call to the next.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from xarch import measure, open_session, timing

PROMPTS = (1, 64, 256)
"""Prompt lengths in tokens."""

CONTEXTS = (0, 256, 1024)
"""Tokens already read when decode speed is measured."""

DECODED = 32
"""Tokens per decode measurement."""


States = dict[str, np.ndarray]


class LanguageGraphs:
    """``decode_1`` and every ``prefill_T`` of an export, with their states.

    Args:
        folder: an export folder.
        metadata: graph name -> its ``xarch.`` metadata; graphs with ``states`` and ``tokens`` take part.
    """

    def __init__(self, folder: Path, metadata: dict[str, dict[str, str]], provider: str, *, threads: int) -> None:
        sizes = {int(facts["xarch.tokens"]): name for name, facts in metadata.items() if is_language(facts)}
        decode = metadata[sizes[1]]
        self.states: list[dict[str, Any]] = json.loads(decode["xarch.states"])
        self.vocab = int(decode.get("xarch.vocab", 1))
        self.context: int | None = json.loads(decode.get("xarch.context", "null"))
        self.sizes = sorted(sizes, reverse=True)
        self._paths = {size: folder / f"{name}.onnx" for size, name in sizes.items()}
        self._provider, self._threads = provider, threads
        self._open: dict[int, tuple[ort.InferenceSession, list[str]]] = {}

    def initial(self, tokens: int = 0) -> States:
        """States as if ``tokens`` were read: caches have their length, values are the initial ones."""
        held = {}
        for state in self.states:
            shape = list(state["shape"])
            if state.get("tokens_axis") is not None and self.context is None:
                shape[state["tokens_axis"]] = tokens
            held[state["name"]] = np.full(shape, state["fill"], state["dtype"])
        return held

    def step(self, ids: np.ndarray, position: int, held: States) -> tuple[np.ndarray, States]:
        """One call on ``ids`` [L], L one of ``sizes``: (logits, new states). The graph is loaded on its first use."""
        size = len(ids)
        if size not in self._open:
            session = open_session(self._paths[size], self._provider, threads=self._threads, prepack=size > 1)
            self._open[size] = session, [output.name for output in session.get_outputs()]
        session, names = self._open[size]
        inputs = {"input_ids": ids[None], "position": np.array([position]), **held}
        out = dict(zip(names, session.run(names, inputs), strict=True))
        return out["logits"], {state["name"]: out[state["present"]] for state in self.states}

    def read(self, ids: np.ndarray) -> tuple[States, int]:
        """A whole prompt from the initial states: (states, calls)."""
        held, position, calls = self.initial(), 0, 0
        while position < len(ids):
            size = next(s for s in self.sizes if s <= len(ids) - position)
            _, held = self.step(ids[position : position + size], position, held)
            position += size
            calls += 1
        return held, calls

    def state_bytes(self, tokens: int) -> int:
        """Bytes of all states after ``tokens`` tokens."""
        return sum(value.nbytes for value in self.initial(tokens).values())


def is_language(facts: dict[str, str]) -> bool:
    """Whether a graph's metadata describes a step over tokens with explicit states."""
    return facts.get("xarch.family") == "decoder" and "xarch.tokens" in facts and "xarch.states" in facts


def measure_language(graphs: LanguageGraphs, say: Callable[[str], None]) -> dict[str, Any]:
    """Prompt latency, decode speed and state bytes at several lengths."""
    fits = graphs.context or max(CONTEXTS) + DECODED
    ids = np.random.default_rng(0).integers(0, graphs.vocab, max(PROMPTS))
    prompt: dict[str, Any] = {}
    for length in (n for n in PROMPTS if n <= fits):
        _, calls = graphs.read(ids[:length])
        result = measure(functools.partial(graphs.read, ids[:length]), warm_up=0, runs=10)
        prompt[str(length)] = {**asdict(result), "calls": calls}
        say(f"bench: {length} tokens read in {result.p50_ms:.1f} ms ({calls} calls)")
    decode: dict[str, Any] = {}
    for context in (n for n in CONTEXTS if n + DECODED <= fits):
        result = timing(list(_decode(graphs, context)))
        speed = round(1e3 / result.p50_ms, 2)
        decode[str(context)] = {**asdict(result), "tokens_per_second": speed}
        say(f"bench: {speed} tokens/s after {context} tokens")
    return {
        "first_token": prompt,
        "decode": decode,
        "state_bytes": {str(context): graphs.state_bytes(context) for context in CONTEXTS},
    }


def _decode(graphs: LanguageGraphs, context: int) -> Iterable[float]:
    """Milliseconds of each of :data:`DECODED` steps after ``context`` tokens, two more before them as warm-up."""
    held = graphs.initial(context)
    token = np.zeros(1, np.int64)
    for i in range(DECODED + 2):
        start = time.perf_counter()
        logits, held = graphs.step(token, context + i, held)
        token = logits[0, -1:].argmax(-1)
        if i >= 2:
            yield 1e3 * (time.perf_counter() - start)
