"""A small speech model as a teacher, and students of it."""

from __future__ import annotations

from typing import Any

import torch

from xarch import Teacher
from xarch_speech.facts import SpeechFacts
from xarch_speech.layout import SpeechOptions
from xarch_speech.model import SpeechModel
from xarch_speech.student import SpeechStudent, SpeechTeacher
from xarch_speech.target import WhisperTarget

FACTS = SpeechFacts(
    mels=8,
    frames=32,
    width=16,
    heads=2,
    encoder=2,
    decoder=4,
    encoder_mlp=24,
    decoder_mlp=20,
    vocab=40,
    max_positions=96,
    start=(35, 36),
    eos=(37,),
)


def whisper(facts: SpeechFacts = FACTS) -> Teacher:
    """A random model whose predictions are not flat."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = SpeechModel(facts)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)
    return SpeechTeacher(made, made.facts, ref="own", fingerprint="")


def student_of(teacher: Teacher, **options: Any) -> SpeechStudent:
    """A student right after its initialisation."""
    target = WhisperTarget()
    with torch.random.fork_rng():
        made = target.build(teacher.facts, SpeechOptions(**options), {}, device=torch.device("cpu"))
    target.initialise(made, teacher)
    made.module.eval().requires_grad_(False)
    return made
