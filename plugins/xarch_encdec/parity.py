"""Parity of exported encoder and decoder: answers written token by token, as on a device.

Legend: B batch, S source tokens, T decoder tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from xarch import Batch, Call, ExportGraph, ParityCase
from xarch_encdec.export import DECODER, ENCODER, own_names, source_names
from xarch_encdec.student import EncDecStudent

STEPS = 64
"""Tokens of a written answer that must equal the student's in one pass."""

MORE_PADS = 5
"""Columns of pads beyond the longest source, which must change nothing."""


def answer_parity(
    student: EncDecStudent, graphs: Sequence[ExportGraph], batches: Sequence[Batch]
) -> Iterator[ParityCase]:
    """Yield answers of one source, and of several sources of unequal lengths with further pads.

    Args:
        batches: held-out pairs; their decoder tokens are read as one stream of text.
    """
    cache = next(graph for graph in graphs if graph.name == DECODER).metadata["cache"]
    sources = [row for batch in batches for row in _sources(batch)]
    text = torch.cat([batch["decoder_input_ids"].flatten().cpu() for batch in batches])
    lengths = sorted({len(row) for row in sources})
    unequal = [next(row for row in sources if len(row) == n) for n in (lengths[-1], lengths[0], *lengths[1:2])]
    yield _case(student, sources[:1], text, STEPS, cache, pads=0)
    yield _case(student, unequal, text, STEPS // 4, cache, pads=MORE_PADS)


def _sources(batch: Batch) -> list[Tensor]:
    seen = batch.seen_by("student")
    ids_BS, mask_BS = seen["input_ids"].cpu(), seen["attention_mask"].cpu()
    return [ids_S[mask_S > 0] for ids_S, mask_S in zip(ids_BS, mask_BS, strict=True)]


def _case(
    student: EncDecStudent, sources: Sequence[Tensor], text: Tensor, steps: int, cache: Sequence[int], *, pads: int
) -> ParityCase:
    width = max(map(len, sources))
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
    padded = [np.pad(given[key], ((0, 0), (0, pads))) for key in ("input_ids", "attention_mask")]
    decoder_BT = given["decoder_input_ids"]

    layers = student.facts.decoder

    def drive(call: Call) -> dict[str, np.ndarray]:
        return write(call, padded[0], padded[1], decoder_BT, layers, cache)

    return ParityCase(
        DECODER,
        {"batch": len(sources), "source": width, "pads": pads, "tokens": steps},
        drive,
        dict(zip(own_names(layers, "present"), _caches(student, batch), strict=True)),
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


def write(
    call: Call,
    ids_BS: np.ndarray,
    mask_BS: np.ndarray,
    decoder_BT: np.ndarray,
    layers: int,
    cache: Sequence[int],
) -> dict[str, np.ndarray]:
    """Return the logits [B, T, V] of decoder tokens read one by one, and keys and values of all, using only numpy
    and the exported graphs.

    Args:
        cache: key/value heads, and the width of a head.
    """
    found = call(ENCODER, {"input_ids": ids_BS, "attention_mask": mask_BS})
    present, source = (source_names(layers, stem) for stem in ("present", "past_key_values"))
    fixed = {name: found[given] for name, given in zip(source, present, strict=True)}
    fixed["encoder_attention_mask"] = mask_BS
    own, given = (own_names(layers, stem) for stem in ("past_key_values", "present"))
    empty = np.zeros((len(ids_BS), cache[0], 0, cache[1]), np.float32)
    held = dict.fromkeys(own, empty)
    logits = []
    for t in range(decoder_BT.shape[1]):
        out = call(DECODER, {"input_ids": decoder_BT[:, t : t + 1], **fixed, **held})
        logits.append(out["logits"])
        held = {name: out[now] for name, now in zip(own, given, strict=True)}
    return {"logits": np.concatenate(logits, 1), **{now: held[name] for name, now in zip(own, given, strict=True)}}
