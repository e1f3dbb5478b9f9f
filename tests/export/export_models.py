"""A small recurrent model with tied embedding, a fixed state and a growing one, and an adapter that exports it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph, Profile
from xarch.contracts.model import Sink, Student
from xarch.contracts.tap import Tap

VOCAB, WIDTH = 300, 32


class Recurrent(nn.Module):
    """(input_ids [1, L], h [1, D], cache [1, S, D]) -> (logits [1, L, V], new h, cache [1, S + L, D])."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor, h: Tensor, cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.mix(self.embed(ids))
        cache = torch.cat([cache, x], 1)
        read = torch.softmax(x @ cache.transpose(1, 2), -1) @ cache
        h = 0.5 * h + read.mean(1)
        return F.linear(read + h[:, None], self.embed.weight), h, cache


class WrongWhenExported(Recurrent):
    """Goes another way under the exporter: the kind of bug that only a comparison of numbers finds."""

    def __init__(self, wrong: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, ids: Tensor, h: Tensor, cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, h, cache = super().forward(ids, h, cache)
        return (self.wrong(logits) if torch.compiler.is_exporting() else logits), h, cache


class PlainStudent(Student):
    """A module whose inputs are batch keys and whose outputs are its taps.

    Args:
        reads: batch keys in the order of the module's arguments.
        gives: tap -> layout in the order of its outputs.
    """

    family = "test"
    facts = None

    def __init__(self, module: nn.Module, reads: Sequence[str], gives: Mapping[str, str]) -> None:
        self.module, self.reads, self.gives = module.requires_grad_(False), reads, gives

    def taps(self) -> Mapping[str, Tap]:
        return {name: Tap(name, "output", layout) for name, layout in self.gives.items()}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        values = self.module(*(batch[key] for key in self.reads))
        values = (values,) if isinstance(values, Tensor) else values
        for name, value in zip(self.gives, values, strict=True):
            if name in wanted:
                sink(name, value)

    def param_groups(self) -> Mapping[str, list[str]]:
        return {"all": [name for name, _ in self.module.named_parameters()]}


class PlainTarget(TargetAdapter):
    """Exports the graphs it is given; they are made from the student's module."""

    def __init__(self, *graphs: ExportGraph) -> None:
        self.graphs = graphs

    def build(self, facts: Any, options: Any, decisions: Mapping[str, Any], *, device: torch.device) -> Student:
        raise AssertionError("not used")

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return self.graphs


def held_out(count: int = 3, past: int = 13) -> list[Batch]:
    """Tokens with states of an earlier text; ``step_T`` reads the first T."""
    generator = torch.Generator().manual_seed(9)
    return [
        Batch(
            {
                "input_ids": torch.randint(VOCAB, (2, 6), generator=generator),
                "h": torch.randn(2, WIDTH, generator=generator),
                "cache": torch.randn(2, past, WIDTH, generator=generator),
                "labels": torch.zeros(2),
            },
            2,
        )
        for _ in range(count)
    ]


def graph(module: nn.Module, tokens: int) -> ExportGraph:
    generator = torch.Generator().manual_seed(tokens)
    return ExportGraph(
        name=f"step_{tokens}",
        module=module,
        inputs={
            "input_ids": torch.randint(VOCAB, (1, tokens), generator=generator),
            "h": torch.randn(1, WIDTH, generator=generator),
            "cache": torch.randn(1, 5, WIDTH, generator=generator),
        },
        outputs=["logits", "present_h", "present_cache"],
        dynamic={"cache": {1: "past"}},
        metadata={"tokens": tokens},
        reads={"input_ids": "input_ids", "h": "h", "cache": "cache"},
        gives={"logits": "logits", "present_h": "h", "present_cache": "cache"},
        top1="logits",
    )


class RecurrentTarget(PlainTarget):
    """Exports ``step_1`` and ``step_4``, and says what they read and give."""

    def export_graphs(self, student: Student, profile: Profile, options: Mapping[str, Any]) -> Sequence[ExportGraph]:
        return [graph(student.module, tokens) for tokens in options.get("tokens", (1, 4))]


def make_student(module: nn.Module | None = None) -> PlainStudent:
    torch.manual_seed(0)
    if module is None:
        module = Recurrent()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return PlainStudent(module, ("input_ids", "h", "cache"), {"logits": "BLV", "h": "BD", "cache": "BSD"})
