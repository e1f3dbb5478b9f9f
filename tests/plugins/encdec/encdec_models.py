"""A small decoder as a teacher, and pairs for it."""

from __future__ import annotations

from typing import Any

import torch

from xarch import Batch, Teacher
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.student import DecoderStudent
from xarch_encdec.options import EncDecOptions
from xarch_encdec.student import EncDecStudent
from xarch_encdec.target import EncDecTarget
from xarch_text.pair_encoding import Tokens, to_batch

EQUAL = {"plan": "copy", "cross": "merged", "mask": "causal", "memory": "layers"}
"""Options of a student that is the teacher."""

FACTS = DecoderFacts(
    layers=3,
    width=32,
    vocab=260,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    scale=8**-0.5,
    inverse_frequencies=(1.0, 0.1, 0.01, 0.001),
    eos=(258,),
)


def decoder(facts: DecoderFacts = FACTS) -> Teacher:
    """A random decoder whose predictions are not flat."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = DecoderStudent(facts, [[Attention]] * facts.layers)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)
    return made.as_teacher("own", "")


def student_of(teacher: Teacher, **options: Any) -> EncDecStudent:
    """A student right after its initialisation."""
    target = EncDecTarget()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = target.build(teacher.facts, EncDecOptions(**options), {}, device=torch.device("cpu"))
    target.initialise(made, teacher)
    made.module.eval().requires_grad_(False)
    return made


def pairs(seed: int = 0, *, more: int = 0) -> Batch:
    """Pairs of unequal lengths; ``more`` pads on every side."""
    draw = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(1, 250, (count,), generator=draw).tolist()

    made = to_batch([Tokens(ids(n), ids(m)) for n, m in ((11, 6), (4, 9), (7, 3))], 3, joined=True)
    if not more:
        return made
    right = {k: torch.nn.functional.pad(v, (0, more)) for k, v in made.tensors.items() if "@" not in k}
    left = torch.nn.functional.pad(made["input_ids@teacher"], (more, more))
    segments = torch.nn.functional.pad(made["segment_ids@teacher"], (more, 0))
    segments = torch.nn.functional.pad(segments, (0, more), value=2)
    return Batch({**right, "input_ids@teacher": left, "segment_ids@teacher": segments}, 3)


def logits(model: Any, batch: Batch) -> torch.Tensor:
    """Return logits at every decoder token."""
    with torch.no_grad():
        found: torch.Tensor = model.collect(batch, ["logits"])["logits"].full()
    return found
