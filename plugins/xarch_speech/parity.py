"""Parity of exported encoder and decoder: transcripts written token by token, as on a device.

Legend: B batch, T decoder tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from xarch import Batch, Call, ExportGraph, ParityCase
from xarch_encdec.driving import DECODER
from xarch_encdec.parity import decoder_case, encoder_case
from xarch_speech.driving import SpeechGraphs
from xarch_speech.student import SpeechStudent

STEPS = 64
"""Tokens of a written transcript that must equal the student's in one pass."""

ROWS = 3
"""Recordings that are transcribed together."""


def transcript_parity(
    student: SpeechStudent, graphs: Sequence[ExportGraph], batches: Sequence[Batch]
) -> Iterator[ParityCase]:
    """Yield transcripts of one recording and of several; with buffers, also what the encoder gives, for the engine's
    own batches do not have its shapes.

    Args:
        batches: held-out recordings; their decoder tokens are read as one stream of text.
    """
    driven = SpeechGraphs(next(graph for graph in graphs if graph.name == DECODER).metadata)
    steps = min(STEPS, driven.answer or STEPS, student.facts.max_positions)
    seen = [batch.seen_by("student") for batch in batches]
    features_BMF = torch.cat([batch["input_features"].cpu() for batch in seen])[:ROWS]
    text = torch.cat([batch["decoder_input_ids"].flatten().cpu() for batch in seen])
    if driven.answer is not None:
        yield encoder_case(driven, Batch({"input_features": features_BMF[:1]}, 1), {"batch": 1})
    yield _case(student, driven, features_BMF[:1], text, steps)
    if len(features_BMF) > 1:
        yield _case(student, driven, features_BMF, text, max(1, steps // 4))


def _case(
    student: SpeechStudent, driven: SpeechGraphs, features_BMF: torch.Tensor, text: torch.Tensor, steps: int
) -> ParityCase:
    rows = len(features_BMF)
    places = torch.arange(rows * steps) % len(text)
    batch = Batch({"input_features": features_BMF, "decoder_input_ids": text[places].view(rows, steps)}, rows)
    given, text_BT = [features_BMF.numpy()], batch["decoder_input_ids"].numpy()

    def drive(call: Call) -> dict[str, np.ndarray]:
        return driven.follow(call, given, text_BT)

    return decoder_case(driven, batch, {"batch": rows, "tokens": steps}, drive, _caches(student, batch))


def _caches(student: SpeechStudent, batch: Batch) -> list[np.ndarray]:
    """Return the student's own keys and values of all decoder tokens."""
    there = batch.to(student.module.embed.weight.device)
    with torch.no_grad():
        heard = student.module.read(student.heard(there))
        _, caches = student.module.decode(there["decoder_input_ids"], heard)
    return [tensor.cpu().numpy() for cache in caches for tensor in cache]
