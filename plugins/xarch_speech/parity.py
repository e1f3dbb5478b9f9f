"""Parity of exported encoder and decoder: transcripts written token by token, as on a device.

Legend: B batch, T decoder tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from xarch import Batch, Call, ExportGraph, ParityCase
from xarch_encdec.driving import DECODER, ENCODER, own_names, source_names
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
        yield _encoder_case(driven, features_BMF[:1])
    yield _case(student, driven, features_BMF[:1], text, steps)
    if len(features_BMF) > 1:
        yield _case(student, driven, features_BMF, text, max(1, steps // 4))


def _encoder_case(driven: SpeechGraphs, features_1MF: torch.Tensor) -> ParityCase:
    """Return what the encoder gives for a recording."""
    taps = [f"decoder.{j}.cross_{what}" for j in range(driven.layers) for what in ("key", "value")]
    given = {"input_features": features_1MF.numpy()}
    return ParityCase(
        ENCODER,
        {"batch": 1},
        lambda call: call(ENCODER, given),
        batch=Batch({"input_features": features_1MF}, 1),
        taps=dict(zip(source_names(driven.layers, "present"), taps, strict=True)),
    )


def _case(
    student: SpeechStudent, driven: SpeechGraphs, features_BMF: torch.Tensor, text: torch.Tensor, steps: int
) -> ParityCase:
    rows = len(features_BMF)
    places = torch.arange(rows * steps) % len(text)
    batch = Batch({"input_features": features_BMF, "decoder_input_ids": text[places].view(rows, steps)}, rows)
    given = [batch[key].numpy() for key in ("input_features", "decoder_input_ids")]

    def drive(call: Call) -> dict[str, np.ndarray]:
        return driven.transcript(call, *given)

    return ParityCase(
        DECODER,
        {"batch": rows, "tokens": steps},
        drive,
        dict(zip(own_names(driven.layers, "present"), _caches(student, batch), strict=True)),
        top1="logits",
        batch=batch,
        taps={"logits": "logits"},
    )


def _caches(student: SpeechStudent, batch: Batch) -> list[np.ndarray]:
    """Return the student's own keys and values of all decoder tokens."""
    there = batch.to(student.module.embed.weight.device)
    with torch.no_grad():
        heard = student.module.read(student.heard(there))
        _, caches = student.module.decode(there["decoder_input_ids"], heard)
    return [tensor.cpu().numpy() for cache in caches for tensor in cache]
