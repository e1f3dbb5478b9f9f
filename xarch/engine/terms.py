"""The terms of a stage's loss: objectives with their pairs, weights and denominators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.objective import Objective
from xarch.engine.schedule import match_weight
from xarch.matching.pairing import DATA_TAP, Pair

Guard = Callable[[str], contextlib.AbstractContextManager[None]]
"""Around an objective's code, by its name: an error in it names the plugin it came from."""


@dataclass
class Term:
    """One pair and the objective built for it."""

    pair: Pair
    objective: Objective
    guard: Guard

    def denominator(self, batch: Batch) -> Tensor:
        """Sum of the sample weights of a batch."""
        return self.objective.weight(batch).sum()

    def loss(self, student: Any, teacher: Mapping[str, Any], batch: Batch) -> Tensor:
        """Sum over samples, to be divided by the whole batch's denominator."""
        return self.losses(student, teacher, batch).sum()

    def losses(self, student: Any, teacher: Mapping[str, Any], batch: Batch) -> Tensor:
        """Loss of each sample [B]."""
        pair = self.pair
        target = None
        if pair.teacher is not None:
            target = batch[pair.teacher.name] if pair.teacher.kind == "data" else teacher[pair.teacher.name]
        aux = {
            key: batch[ref.removeprefix(DATA_TAP)]
            if ref.startswith(DATA_TAP)
            else teacher[ref.removeprefix("teacher:")]
            for key, ref in pair.aux.items()
        }
        with self.guard(pair.match.objective):
            value: Tensor = self.objective(student, target, batch, **aux)
            return value


@dataclass
class StepFigures:
    """Figures of one optimiser step, added up over micro-batches (losses already carry their denominator)."""

    loss: float = 0.0
    by_match: dict[str, float] = field(default_factory=dict)
    by_site: dict[str, float] = field(default_factory=dict)

    def add(self, term: Term, value: float, weight: float) -> None:
        """Count one term's contribution."""
        self.loss += weight * value
        label = term.pair.label
        self.by_match[label] = self.by_match.get(label, 0.0) + value
        if term.pair.site is not None:
            self.by_site[term.pair.site] = self.by_site.get(term.pair.site, 0.0) + value

    def row(self, summed: Callable[[Mapping[str, float]], dict[str, float]], sites: int) -> dict[str, float]:
        """Figures for the log, summed over processes; per-match values are means over sites."""
        flat = {"loss": self.loss}
        flat |= {f"match.{k}": v / max(sites, 1) for k, v in self.by_match.items()}
        flat |= {f"site.{k}": v for k, v in self.by_site.items()}
        return summed(flat)


def build_terms(
    pairs: Sequence[Pair], create: Callable[[str], type[Objective]], guard: Guard, device: torch.device
) -> list[Term]:
    """Objectives for all pairs, on the device; their parameters are initialised under the stage's seed."""
    terms = []
    for pair in pairs:
        with guard(pair.match.objective):
            objective = create(pair.match.objective)(pair.student, pair.teacher, pair.match.options)
        terms.append(Term(pair, objective.to(device), guard))
    return terms


def objective_modules(terms: Sequence[Term]) -> nn.ModuleList:
    """Every objective in one module, for checkpoints and the optimiser."""
    return nn.ModuleList([t.objective for t in terms])


def weights_at(terms: Sequence[Term], step: float, steps: int) -> list[float]:
    """Match weights at a step."""
    return [match_weight(t.pair.match.weight, step, steps) for t in terms]
