"""Transcripts, greedily, with caches.

Legend: B batch, M bands, F frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch import Batch, TapModel, UsageError
from xarch_encdec.running import until
from xarch_speech.exported import ExportedSpeech
from xarch_speech.model import SpeechModel
from xarch_speech.student import Running
from xarch_speech.wav import read_wav


def written(model: SpeechModel, memory_BSD: Tensor, tokens: int) -> Iterator[Tensor]:
    """Yield the most likely next token [B] of every transcript, at most ``tokens`` times or as often as there are
    positions; it ends once every row has ended."""
    facts, device = model.facts, memory_BSD.device
    heard, past = model.read(memory_BSD), None
    ids_BT = torch.tensor(facts.start, device=device).expand(len(memory_BSD), -1)
    ends = torch.tensor(facts.eos, dtype=torch.long, device=device)
    ended_B = torch.zeros(len(memory_BSD), dtype=torch.bool, device=device)
    for _ in range(min(tokens, facts.max_positions - len(facts.start) + 1)):
        final_BTD, past = model.decode(ids_BT, heard, past)
        ids_BT = model.logits(final_BTD).of(final_BTD[:, -1]).argmax(-1)[:, None]
        yield ids_BT[:, 0]
        ended_B |= torch.isin(ids_BT[:, 0], ends)
        if bool(ended_B.all()):
            return


def transcripts(model: TapModel, batch: Batch, tokens: int) -> list[list[int]]:
    """Return the tokens of every recording's transcript, without its end.

    Raises:
        UsageError: the model is neither a speech model nor files of one.
    """
    if isinstance(model, Running):
        found = torch.stack(list(written(model.module, model.heard(batch), tokens)), 1).tolist()
    elif isinstance(model, ExportedSpeech):
        found = model.written(batch["input_features"], tokens)
    else:
        raise UsageError(f"a {type(model).__name__} writes no transcripts")
    return [until(row, model.facts.eos) for row in found]


def transcript_of_file(model: TapModel, processor: Any, file: str, tokens: int) -> str:
    """Return the transcript of a WAV file.

    Raises:
        UsageError: there is no such file, or the model has no processor.
    """
    if processor is None or not isinstance(model, Running):
        raise UsageError("the model has no tokenizer", "convert a teacher that has one")
    sound_N = read_wav(Path(file), model.facts.rate)
    features_BMF = torch.from_numpy(processor.features(sound_N))[None].to(model.module.embed.weight.device)
    with torch.no_grad():
        [ids] = transcripts(model, Batch({"input_features": features_BMF}, 1), tokens)
    return str(processor.decode(ids))
