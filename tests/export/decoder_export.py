"""A tiny hybrid decoder, its adapter and a tokenizer of single characters."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph, ParityCase, Profile
from xarch.contracts.model import Initialisation, Student, Teacher
from xarch_decoder.export import DecoderExport, decoder_graphs
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.mixer import Mixer, StateSpec
from xarch_decoder.model.mixer import SequenceInfo as Tokens
from xarch_decoder.parity import decoder_parity
from xarch_decoder.student import DecoderStudent

LETTERS = ["<|im_start|>", "<|im_end|>", *string.ascii_lowercase, *" \n.,?!"]

FACTS = DecoderFacts(
    layers=2,
    width=32,
    vocab=len(LETTERS),
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    scale=8**-0.5,
    inverse_frequencies=(1.0, 0.1, 0.01, 0.001),
    max_positions=256,
)


class Decay(Mixer):
    """h_t = h_{t-1} / 2 + W x_t, read out as it is."""

    kind = "decay"

    def __init__(self, facts: DecoderFacts, layer: int) -> None:
        super().__init__()
        self.value = nn.Linear(facts.width, facts.width, bias=False)
        self.width = facts.width

    def forward(self, x_BLD: Tensor, sequence: Tokens) -> Tensor:
        return self.advance(x_BLD, sequence.positions_BL, (x_BLD.new_zeros(len(x_BLD), self.width),))[0]

    def advance(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        lag = [[0.5 ** (t - s) if s <= t else 0.0 for s in range(x_BLD.shape[1])] for t in range(x_BLD.shape[1])]
        carried_L = torch.tensor([0.5 ** (t + 1) for t in range(x_BLD.shape[1])])
        out_BLD = torch.tensor(lag) @ self.value(x_BLD) + carried_L[:, None] * state[0][:, None]
        return out_BLD, (out_BLD[:, -1],)

    def state_spec(self) -> tuple[StateSpec, ...]:
        return (StateSpec("decayed", (self.width,)),)


class DecoderTarget(TargetAdapter):
    """What every decoder target does for export, on hand-made students."""

    def build(self, facts: Any, options: Any, decisions: Mapping[str, Any], *, device: torch.device) -> Student:
        return decoder_student()

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        return Initialisation()

    def initialisation(self, facts: Any, student: Student) -> Initialisation:
        return Initialisation()

    def recipe(self, facts: Any, options: Any) -> str:
        return ""

    def export_graphs(self, student: Student, profile: Profile, options: Mapping[str, Any]) -> Sequence[ExportGraph]:
        assert isinstance(student, DecoderStudent)
        return decoder_graphs(student, profile, DecoderExport.model_validate(options))

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        assert isinstance(student, DecoderStudent)
        return decoder_parity(student, graphs, batches)


def decoder_student() -> DecoderStudent:
    torch.manual_seed(3)
    student = DecoderStudent(FACTS, [[Decay], [Attention]])
    for name, p in student.module.named_parameters():
        # a small embedding, or the tied head would repeat the last token for ever
        if p.ndim == 2:
            nn.init.normal_(p, std=0.3 if name == "embed.weight" else 0.5)
    student.module.requires_grad_(False).eval()
    return student


def letters_tokenizer(path: Path) -> Tokenizer:
    """One token per character, and the two ChatML marks; saved as ``tokenizer.json``."""
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="?"))
    tokenizer.add_special_tokens(LETTERS[:2])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(path))
    return tokenizer
