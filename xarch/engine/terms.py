"""The terms of a stage's loss: pairs with their connectors, objectives, weights and denominators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xarch.config.schema import Stage
from xarch.contracts.batch import Batch
from xarch.contracts.connector import Connector
from xarch.contracts.objective import MatchContext, Objective
from xarch.matching.build import build_match
from xarch.matching.pairing import Pair, Reference
from xarch.matching.references import STUDENT
from xarch.matching.schedules import ScheduledOptions, phase_index, value_at
from xarch.registry.registry import Registry

Right = Callable[[Reference], Any]
"""Returns the value of a reference in the current micro-batch."""


@dataclass
class Term:
    """One pair with its objective and connector.

    Attributes:
        pair, objective, connector: what is compared and how.
        options: the objective's options before the first phase and in every phase.
        guard: context manager around objective and connector code, which attributes exceptions to their plugin.
        name: key of its modules in the stage's modules.
    """

    pair: Pair
    objective: Objective
    connector: Connector | None
    options: Sequence[ScheduledOptions]
    guard: Callable[[], contextlib.AbstractContextManager[None]]
    name: str
    weight: float = 1.0
    phase: int = 0

    def at(self, stage: Stage, phase: int, progress: float) -> None:
        """Set weight and options to their values at ``progress`` of the stage, in phase ``phase``."""
        settings = stage.matches[self.pair.match]
        self.weight, self.phase = value_at(settings.weight, progress), phase
        options = self.options[phase]
        if options.ramps or len(self.options) > 1:
            self.objective.options = options.at(progress)

    def monitor(self, wanted: bool) -> None:
        """Let the objective compute the figures of its next forward pass, or leave them out."""
        if self.objective.monitored != wanted:
            self.objective.monitored = wanted

    @property
    def references(self) -> Iterable[Reference]:
        """Everything it reads besides its own student taps."""
        return (*self.pair.right.values(), *self.pair.aux.values())

    def target(self, right: Right) -> Any:
        """Return the right side's value, or a mapping of values; None without a right side."""
        if not self.pair.right:
            return None
        if self.pair.several:
            return {name: self._value(reference, right) for name, reference in self.pair.right.items()}
        return self._value(self.pair.right[""], right)

    def _value(self, reference: Reference, right: Right) -> Any:
        value = right(reference)
        return detached(value) if reference.model == STUDENT and self.pair.settings.detach else value

    def sums(self) -> list[Tensor]:
        """Return the buffers that the objective adds to during a step."""
        return [self.objective.get_buffer(name) for name in sorted(self.objective.summed)]

    def mask(self, seen: Batch) -> Tensor | None:
        """Return the mask of the positions that count."""
        return self._masked(self.pair.masks[self.phase].objective, seen)

    @staticmethod
    def _masked(key: str | None, seen: Batch) -> Tensor | None:
        return None if key is None else seen[key]

    def weights(self, seen: Batch, target: Any = None) -> Tensor:
        """Return the weight of each sample [B]; ``target`` is used only if the objective's ``weighs_target`` is set."""
        with self.guard():
            weights = self.objective.weight(seen, target, mask=self.mask(seen))
            return self._per_sample(weights, seen, "weight() returned a tensor")

    def _per_sample(self, value: Tensor, seen: Batch, what: str) -> Tensor:
        if value.shape != (len(seen),):
            raise ValueError(
                f"matches.{self.pair.match}: {what} of shape {list(value.shape)}, expected one number per sample, "
                f"[{len(seen)}]"
            )
        return value

    def losses(self, student: Mapping[str, Any], right: Right, seen: Batch) -> Tensor:
        """Return the loss of each sample [B].

        Args:
            student: the student's values, by the names in ``pair.student``.
            right: returns referenced values.
            seen: the batch as seen by the student.
        """
        pair = self.pair
        values = {name: student[name] for name in pair.student}
        target = self.target(right)
        aux = {key: self._value(reference, right) for key, reference in pair.aux.items()}
        with self.guard():
            left: Any = values if pair.joined else next(iter(values.values()))
            if self.connector is not None:
                left = self.connector(left, seen, mask=self._masked(pair.masks[self.phase].connector, seen))
            loss: Tensor = self.objective(left, target, seen, mask=self.mask(seen), **aux)
            return self._per_sample(loss, seen, "forward() returned a loss")


def detached(value: Any) -> Any:
    """Return a detached copy of a value: a tensor, or a structured form with tensors in its fields."""
    if isinstance(value, Tensor):
        return value.detach()
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: detached(getattr(value, f.name)) for f in fields(value) if f.init})
    return value


def build_terms(
    pairs: Sequence[Pair],
    phases: Sequence[Stage],
    registry: Registry,
    context: MatchContext,
    device: torch.device,
    where: str,
) -> list[Term]:
    """Build the objectives and connectors of all pairs on the device, using torch's global generator.

    Args:
        phases: the stage's settings before the first phase and in each phase.
        context: build context; the match name is filled in.
        where: configuration key of the stage, for messages.
    """
    terms: list[Term] = []
    for pair in pairs:
        key = f"{where}.matches.{pair.match}"
        with torch.device(device):
            built = build_match(pair, registry, replace(context, match=pair.match), key)
        options = [
            ScheduledOptions(type(built.objective).Options, settings.matches[pair.match].options) for settings in phases
        ]
        name = (f"{pair.site}:" if pair.site else "") + pair.label
        terms.append(
            Term(
                pair,
                built.objective.to(device),
                built.connector.to(device) if built.connector is not None else None,
                options,
                partial(registry.guard, built.spec, where),
                name.replace(".", "/"),
            )
        )
    return terms


class StageModules(nn.Module):
    """Container of all connectors and objectives of a stage."""

    def __init__(self, terms: Iterable[Term]) -> None:
        super().__init__()
        self.connectors = nn.ModuleDict({t.name: t.connector for t in terms if t.connector is not None})
        self.objectives = nn.ModuleDict({t.name: t.objective for t in terms})


@dataclass
class StepFigures:
    """Figures of one optimiser step, accumulated over micro-batches (losses are already divided by their denominator).
    Values stay on the device until :meth:`row` reads them once.
    """

    recorded: list[tuple[Term, Tensor]] = field(default_factory=list)

    def add(self, term: Term, value: Tensor) -> None:
        """Add one term's unweighted contribution."""
        self.recorded.append((term, value.detach()))

    def row(self, summed: Callable[[Mapping[str, float]], dict[str, float]]) -> dict[str, float]:
        """Return the figures for the log, summed over processes; figures of a match are means over sites."""
        values = torch.stack([v.float() for _, v in self.recorded]).tolist() if self.recorded else []
        row: dict[str, float] = {"loss": 0.0}
        sites: dict[str, set[str | None]] = {}
        for (term, _), value in zip(self.recorded, values, strict=True):
            label, site = term.pair.label, term.pair.site
            weighted = term.weight * value
            row["loss"] += weighted
            sites.setdefault(label, set()).add(site)
            for name, figure in ((f"match.{label}", value), (f"weighted.{label}", weighted)):
                row[name] = row.get(name, 0.0) + figure
            if site:
                row[f"site.{site}"] = row.get(f"site.{site}", 0.0) + weighted
        for label, those in sites.items():
            if len(those) > 1:
                row[f"match.{label}"] /= len(those)
                row[f"weighted.{label}"] /= len(those)
        return summed(row)


def phase_of(phases: Sequence[Stage], progress: float) -> int:
    """Return the settings from ``phase_settings`` that apply at ``progress``."""
    return phase_index(phases[0].phases, progress)
