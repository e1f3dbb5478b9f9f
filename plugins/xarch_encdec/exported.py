"""The exported files of an encoder-decoder as a model with logits, so that a metric evaluates the files themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from xarch import Batch, Sink, Tap, TapModel, graph_metadata, open_session, read_json
from xarch_decoder.exported import ReadLogits
from xarch_encdec.bench import AnswerGraphs
from xarch_encdec.export import DECODER, ENCODER
from xarch_encdec.parity import write
from xarch_encdec.student import EncDecStudent


class ExportedAnswers(TapModel):
    """``encoder`` and ``decoder_1`` of an export, the latter called for one token after another.

    Args:
        folder: the export.
        student: whose logits the graphs compute.
        threads: of the runtime.
    """

    def __init__(self, folder: Path, student: EncDecStudent, *, threads: int) -> None:
        self.module, self.family, self.facts = nn.Module(), student.family, student.facts
        self._logits = student.taps()["logits"]
        provider = read_json(folder / "profile.json")["profile"]["provider"]
        described = {name: graph_metadata(folder / f"{name}.onnx") for name in (ENCODER, DECODER)}
        self._driven = AnswerGraphs(described[DECODER])
        self._sessions: dict[str, Any] = {}
        for name, facts in described.items():
            prepack = facts.get("xarch.prepack") != "false"
            session = open_session(folder / f"{name}.onnx", provider, threads=threads, prepack=prepack)
            self._sessions[name] = session, [output.name for output in session.get_outputs()]

    def taps(self) -> Mapping[str, Tap]:
        return {"logits": self._logits}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push the logits of every decoder token."""
        if "logits" not in wanted:
            return
        ids, mask, tokens = (batch[key].cpu().numpy() for key in ("input_ids", "attention_mask", "decoder_input_ids"))
        cache = self._driven.heads, self._driven.width
        logits_BTV = torch.from_numpy(write(self._call, ids, mask, tokens, self._driven.layers, cache)["logits"])
        sink("logits", ReadLogits(logits_BTV, logits_BTV.new_empty(logits_BTV.shape[-1], 0)))

    def _call(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session, names = self._sessions[graph]
        return dict(zip(names, session.run(names, inputs), strict=True))
