"""What a student must beat: the teacher with layers left out, at the student's size, without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from xarch import Control
from xarch_speech.layout import Layout, cut, teacher_name
from xarch_speech.model import SpeechModel
from xarch_speech.student import Running, SpeechStudent, SpeechTeacher

CUT = "teacher without layers"


def cut_controls(teacher: object, student: object) -> dict[str, Control]:
    """Return the teacher with the student's layers alone; none if it has no others."""
    if not isinstance(teacher, Running) or not isinstance(student, SpeechStudent):
        return {}
    layout = Layout(student.encoder, student.decoder)
    facts = cut(teacher.facts, layout)
    if facts == teacher.facts:
        return {}
    with torch.device("meta"):
        module = SpeechModel(facts)
    weights = teacher.module.state_dict()
    module.load_state_dict({name: weights[teacher_name(name, layout)] for name in module.state_dict()}, assign=True)
    said: Mapping[str, Any] = {"encoder": list(layout.encoder), "decoder": list(layout.decoder)}
    return {CUT: Control(SpeechTeacher(module, module.facts, ref="cut", fingerprint=""), {"keeps": dict(said)})}
