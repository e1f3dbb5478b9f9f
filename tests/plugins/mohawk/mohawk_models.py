"""Small decoder teachers and recurrent students for the tests of the plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xarch import Batch
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.student import DecoderStudent
from xarch_decoder.teacher import StudentTeacher
from xarch_mohawk.student import RecurrentStudent
from xarch_mohawk.target import DM2Target, RecurrentTarget

CPU = torch.device("cpu")


def tiny_facts(**changes: Any) -> DecoderFacts:
    """Three layers, width 32, 4 heads on 2 key heads of 8 channels."""
    facts = DecoderFacts(
        layers=3,
        width=32,
        vocab=61,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=48,
        scale=8**-0.5,
        inverse_frequencies=tuple(10000.0 ** (-i / 4) for i in range(4)),
        max_positions=256,
        bos=1,
        eos=(2,),
    )
    return replace(facts, **changes)


def make_teacher(facts: DecoderFacts, seed: int = 0) -> StudentTeacher:
    """A random decoder whose attention has an opinion: q and k large enough for uneven scores, norms not all one."""
    torch.manual_seed(seed)
    student = DecoderStudent(facts, [[Attention]] * facts.layers)
    with torch.no_grad():
        for name, p in student.module.named_parameters():
            if ".attention.q." in name or ".attention.k." in name:
                p.mul_(4.0)
            if "norm" in name and p.ndim == 1:
                p.add_(0.2 * torch.randn_like(p))
    return StudentTeacher(student, ref=f"made:{seed}", fingerprint=f"made {facts} {seed}")


def make_student(teacher: StudentTeacher, kind: type[RecurrentTarget] = DM2Target, **options: Any) -> RecurrentStudent:
    """A student right after its initialisation."""
    target = kind()
    student = target.build(teacher.facts, target.Options.model_validate(options), {}, device=CPU)
    target.initialise(student, teacher)
    student.module.eval().requires_grad_(False)
    return student


def shake(student: RecurrentStudent, seed: int = 0) -> None:
    """Move every parameter of the recurrent mixers away from its start, so that no part is an identity."""
    generator = torch.Generator().manual_seed(seed)

    def noise(p: Tensor, size: float) -> Tensor:
        return torch.randn(p.shape, generator=generator).to(p) * size

    with torch.no_grad():
        for layer in student.replaced:
            mixer = student.mixer(layer)
            for name, p in mixer.named_parameters():
                p.add_(noise(p, 0.3 if p.ndim == 1 or "conv" in name else 0.1))
            for name, buffer in mixer.named_buffers():
                assert name == "gain"
                buffer.copy_(noise(buffer, 0.2))


def tokens(facts: DecoderFacts, rows: int, length: int, *, seed: int = 1, documents: bool = False) -> Batch:
    """Random tokens; with ``documents`` every row holds three documents of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"input_ids": torch.randint(facts.vocab, (rows, length), generator=generator)}
    if documents:
        cuts = torch.stack([torch.randperm(length - 1, generator=generator)[:2] + 1 for _ in range(rows)])
        place = torch.arange(length)
        tensors["segment_ids"] = (place[None, None] >= cuts[:, :, None]).sum(1)
    return Batch(tensors, rows * length)


def logits(model: Any, batch: Batch) -> Tensor:
    """Logits [B, L, V] of a teacher or student."""
    with torch.no_grad():
        values: Mapping[str, Any] = model.collect(batch, {"logits"})
        full: Tensor = values["logits"].full()
    return full


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest deviation, as a fraction of the largest expected value."""
    got, expected = got.detach(), expected.detach()
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
