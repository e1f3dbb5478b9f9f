"""Benchmarks of an exported encoder-decoder: time to the first token of an answer, and tokens per second after it.

Cases are named as those of a decoder, so that they are compared with the teacher's graphs: the first token takes the
encoder and one step, which a decoder spends on its prompt.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xarch import BenchCase, Call, ExportGraph, PlanError, Teacher, graph_metadata
from xarch_decoder.bench import CONTEXTS, DECODED, PROMPTS
from xarch_decoder.controls import bounded_teacher
from xarch_decoder.export import DecoderExport, decoder_graphs
from xarch_encdec.export import DECODER, ENCODER, own_names, source_names
from xarch_encdec.teacher import AnswerView

PREFILL = [64, 256]
"""Tokens per call of the teacher's prefill graphs: it reads a prompt in as few calls as the cases allow."""

Values = dict[str, np.ndarray]


class AnswerGraphs:
    """``encoder`` and ``decoder_1`` of an export.

    Args:
        metadata: of ``decoder_1``.
    """

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self.layers, self.vocab = int(metadata["xarch.layers"]), int(metadata["xarch.vocab"])
        self.heads, self.width = json.loads(metadata["xarch.cache"])

    def read(self, call: Call, ids: np.ndarray) -> Values:
        """Return what the decoder takes of a source [S] in every step."""
        mask = np.ones((1, len(ids)), np.int64)
        found = call(ENCODER, {"input_ids": ids[None], "attention_mask": mask})
        names = zip(source_names(self.layers, "past_key_values"), source_names(self.layers, "present"), strict=True)
        return {"encoder_attention_mask": mask, **{name: found[given] for name, given in names}}

    def empty(self) -> Values:
        """Return the decoder's own keys and values before its first token."""
        nothing = np.zeros((1, self.heads, 0, self.width), np.float32)
        return dict.fromkeys(own_names(self.layers, "past_key_values"), nothing)

    def step(self, call: Call, token: int, fixed: Values, held: Values) -> tuple[int, Values]:
        """Return the next token and the decoder's keys and values."""
        out = call(DECODER, {"input_ids": np.array([[token]]), **fixed, **held})
        names = zip(own_names(self.layers, "past_key_values"), own_names(self.layers, "present"), strict=True)
        return int(out["logits"][0, -1].argmax()), {name: out[now] for name, now in names}

    def first(self, call: Call, ids: np.ndarray) -> None:
        """Read a prompt [L] and give the first token of the answer."""
        self.step(call, int(ids[-1]), self.read(call, ids[:-1]), self.empty())

    def write(self, call: Call, fixed: Values, start: int) -> None:
        """Give :data:`DECODED` tokens after a source."""
        token, held = start, self.empty()
        for _ in range(DECODED):
            token, held = self.step(call, token, fixed, held)

    def source(self, tokens: int) -> Values:
        """Return a source of so many tokens whose keys and values are zero, which take as long as others."""
        keys = np.zeros((1, self.heads, tokens, self.width), np.float32)
        fixed: Values = dict.fromkeys(source_names(self.layers, "past_key_values"), keys)
        return {"encoder_attention_mask": np.ones((1, tokens), np.int64), **fixed}


def answer_cases(graphs: Sequence[str], folder: Path) -> Iterator[BenchCase]:
    """Yield time to first token at the decoder family's prompt lengths, and decoding after its contexts.

    Args:
        graphs: names of the exported graphs in ``folder``.
    """
    if not {ENCODER, DECODER} <= set(graphs):
        return
    driven = AnswerGraphs(graph_metadata(folder / f"{DECODER}.onnx"))
    ids = np.random.default_rng(0).integers(0, driven.vocab, max(PROMPTS))
    for length in (n for n in PROMPTS if n > 1):
        drive = functools.partial(driven.first, ids=ids[:length])
        yield BenchCase(f"first token, prompt of {length}", "token", length, (ENCODER, DECODER), drive)
    for context in (n for n in CONTEXTS if n):
        fixed = driven.source(context)
        figures = {
            "state_bytes": float(sum(value.nbytes for name, value in fixed.items() if name.endswith(("key", "value"))))
        }
        more = functools.partial(driven.write, fixed=fixed, start=0)
        yield BenchCase(f"decode after {context}", "token", DECODED, (DECODER,), more, figures)


def rival_graphs(teacher: Teacher, profile: Any) -> list[ExportGraph]:
    """Return the teacher as a decoder's graphs, whose prompts give the logits of the last position alone.

    Raises:
        PlanError: the teacher is no decoder with attention in every layer.
    """
    decoder = teacher.teacher if isinstance(teacher, AnswerView) else teacher
    if decoder.family != "decoder":
        raise PlanError(f"a teacher of the family {decoder.family!r} has no graphs to compare with")
    return decoder_graphs(bounded_teacher(decoder, {}), profile, DecoderExport(prefill=PREFILL))
