"""Parity of exported encoder and decoder: answers written token by token, as on a device.

Legend: B batch, S source tokens, T decoder tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from xarch import Batch, Call, ExportGraph, ParityCase
from xarch_encdec.driving import DECODER, ENCODER, AnswerGraphs, own_names, source_names
from xarch_encdec.student import EncDecStudent

STEPS = 64
"""Tokens of a written answer that must equal the student's in one pass."""

MORE_PADS = 5
"""Columns of pads beyond the longest source, which must change nothing; static shapes have their own."""


def answer_parity(
    student: EncDecStudent, graphs: Sequence[ExportGraph], batches: Sequence[Batch]
) -> Iterator[ParityCase]:
    """Yield answers of one source, and of several sources of unequal lengths with further pads.

    With static shapes, also what the encoder gives, for the engine's own batches do not have its shapes.

    Args:
        batches: held-out pairs; their decoder tokens are read as one stream of text.
    """
    driven = AnswerGraphs(next(graph for graph in graphs if graph.name == DECODER).metadata)
    room, steps = driven.source, min(STEPS, driven.answer or STEPS)
    sources = [row[:room] for batch in batches for row in _sources(batch)]
    text = torch.cat([batch["decoder_input_ids"].flatten().cpu() for batch in batches])
    lengths = sorted({len(row) for row in sources})
    unequal = [next(row for row in sources if len(row) == n) for n in (lengths[-1], lengths[0], *lengths[1:2])]
    if room is not None:
        yield _encoder_case(driven, sources[0])
    yield _case(student, driven, sources[:1], text, steps, pads=0)
    yield _case(student, driven, unequal, text, max(1, steps // 4), pads=MORE_PADS)


def _sources(batch: Batch) -> list[Tensor]:
    seen = batch.seen_by("student")
    ids_BS, mask_BS = seen["input_ids"].cpu(), seen["attention_mask"].cpu()
    return [ids_S[mask_S > 0] for ids_S, mask_S in zip(ids_BS, mask_BS, strict=True)]


def _encoder_case(driven: AnswerGraphs, ids_S: Tensor) -> ParityCase:
    """Return what the encoder gives for a source and the pads after it."""
    assert driven.source is not None
    ids_1S = torch.nn.functional.pad(ids_S, (0, driven.source - len(ids_S)))[None]
    mask_1S = (torch.arange(driven.source) < len(ids_S)).long()[None]
    given = {"input_ids": ids_1S, "attention_mask": mask_1S}
    return encoder_case(driven, Batch(given, len(ids_S)), {"batch": 1, "source": len(ids_S)})


def _case(
    student: EncDecStudent, driven: AnswerGraphs, sources: Sequence[Tensor], text: Tensor, steps: int, *, pads: int
) -> ParityCase:
    width = max(map(len, sources))
    pads = pads if driven.source is None else driven.source - width
    places = torch.arange(len(sources) * steps) % len(text)
    lengths_B1 = torch.tensor([[len(row)] for row in sources])
    batch = Batch(
        {
            "input_ids": torch.stack([torch.cat([row, row.new_zeros(width - len(row))]) for row in sources]),
            "attention_mask": (torch.arange(width) < lengths_B1).long(),
            "decoder_input_ids": text[places].view(len(sources), steps),
        },
        len(sources) * steps,
    )
    given = {key: batch[key].numpy() for key in batch.tensors}
    ids_BS, mask_BS = (np.pad(given[key], ((0, 0), (0, pads))) for key in ("input_ids", "attention_mask"))

    def drive(call: Call) -> dict[str, np.ndarray]:
        return driven.follow(call, [ids_BS, mask_BS], given["decoder_input_ids"])

    shape = {"batch": len(sources), "source": width, "pads": pads, "tokens": steps}
    return decoder_case(driven, batch, shape, drive, _caches(student, batch))


def encoder_case(driven: AnswerGraphs, batch: Batch, shape: dict[str, int]) -> ParityCase:
    """Return what the encoder gives for a batch, all of whose tensors it takes."""
    taps = [f"decoder.{j}.cross_{what}" for j in range(driven.layers) for what in ("key", "value")]
    given = {key: value.numpy() for key, value in batch.tensors.items()}
    return ParityCase(
        ENCODER,
        shape,
        lambda call: call(ENCODER, given),
        batch=batch,
        taps=dict(zip(source_names(driven.layers, "present"), taps, strict=True)),
    )


def decoder_case(
    driven: AnswerGraphs,
    batch: Batch,
    shape: dict[str, int],
    drive: Callable[[Call], dict[str, np.ndarray]],
    caches: Sequence[np.ndarray],
) -> ParityCase:
    """Return logits of decoder tokens that were read one by one, and their keys and values.

    Args:
        caches: what these must be.
    """
    return ParityCase(
        DECODER,
        shape,
        drive,
        dict(zip(own_names(driven.layers, "present"), caches, strict=True)),
        top1="logits",
        batch=batch,
        taps={"logits": "logits"},
    )


def _caches(student: EncDecStudent, batch: Batch) -> list[np.ndarray]:
    """Return the student's own keys and values of all decoder tokens."""
    model = student.module
    there = batch.to(model.embed.weight.device)
    with torch.no_grad():
        source = model.encode(there["input_ids"], there["attention_mask"], model.opened())
        _, caches = model.decode(there["decoder_input_ids"], there["attention_mask"], source)
    return [tensor.cpu().numpy() for cache in caches for tensor in cache]
