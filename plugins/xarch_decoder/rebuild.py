"""A decoder as it is, for targets that change parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel

from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.student import DecoderStudent
from xarch_decoder.target import DecoderTarget


class SameDecoder(DecoderTarget[DecoderStudent]):
    """Students are the teacher: its attention in every layer, all weights copied."""

    students = DecoderStudent

    def build(
        self, facts: DecoderFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> DecoderStudent:
        student = DecoderStudent(facts, [[Attention]] * facts.layers, device=device)
        student.decide(decisions)
        return student
