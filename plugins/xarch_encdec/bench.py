"""Benchmarks of an exported encoder-decoder: time to the first token of an answer, and tokens per second after it.

Cases are named as those of a decoder, so that they are compared with the teacher's graphs: the first token takes the
encoder and one step, which a decoder spends on its prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xarch import BenchCase, Call, ExportGraph, PlanError, Teacher
from xarch_decoder.bench import CONTEXTS, DECODED, PROMPTS
from xarch_decoder.controls import bounded_teacher
from xarch_decoder.export import DecoderExport, decoder_graphs
from xarch_encdec.driving import DECODER, ENCODER, AnswerGraphs
from xarch_encdec.teacher import AnswerView

PREFILL = [64, 256]
"""Tokens per call of the teacher's prefill graphs: it reads a prompt in as few calls as the cases allow."""


def first_token(driven: AnswerGraphs, call: Call, ids: np.ndarray) -> None:
    """Read a prompt [L] and give the first token of its answer."""
    fixed = driven.read(call, ids[None, :-1], np.ones((1, len(ids) - 1), np.int64))
    driven.write(call, fixed, ids[-1:], 1)


def answer_cases(graphs: Sequence[str], folder: Path) -> Iterator[BenchCase]:
    """Yield time to first token at the decoder family's prompt lengths, and decoding after its contexts.

    Args:
        graphs: names of the exported graphs in ``folder``.
    """
    if not {ENCODER, DECODER} <= set(graphs):
        return
    driven = AnswerGraphs.of(folder)
    most = driven.source or max(*PROMPTS, *CONTEXTS)
    ids = np.random.default_rng(0).integers(0, driven.vocab, max(PROMPTS))
    for length in (n for n in PROMPTS if 1 < n <= most + 1):
        drive = functools.partial(first_token, driven, ids=ids[:length])
        yield BenchCase(f"first token, prompt of {length}", "token", length, (ENCODER, DECODER), drive)
    for context in (n for n in CONTEXTS if 0 < n <= most):
        fixed = driven.memory(context)
        figures = {
            "state_bytes": float(sum(value.nbytes for name, value in fixed.items() if name.endswith(("key", "value"))))
        }
        more = functools.partial(driven.write, fixed=fixed, start_B=np.zeros(1, np.int64), tokens=DECODED)
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
