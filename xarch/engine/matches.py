"""The matches of a running stage: losses and gradients of whole batches, split into micro-batches as needed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xarch.config.schema import Stage
from xarch.contracts.batch import Batch
from xarch.contracts.stage import StageMatches
from xarch.engine.distributed import Distributed
from xarch.engine.guards import release_memory
from xarch.engine.modes import Modes
from xarch.engine.seeds import RandomState
from xarch.engine.terms import Right, StageModules, StepFigures, Term, phase_of
from xarch.engine.walks import Values, Walk
from xarch.errors import OutOfMemoryError, PlanError
from xarch.failures import is_out_of_memory
from xarch.matching.references import STUDENT

T = TypeVar("T")
SMALLEST = 1e-12
"""Denominator used when the weights of a batch sum to zero."""


@dataclass
class MemoryLimit:
    """How a stage handles running out of memory.

    Attributes:
        name: of the stage.
        retries: how many times micro-batches may be halved. estimated: bytes estimated by the plan.
        say: called with one line to display.
    """

    name: str
    retries: int
    estimated: int
    say: Callable[[str], None]


@dataclass
class _Part:
    """A micro-batch: with all views, as seen by the student, and the teacher values if already computed."""

    batch: Batch
    seen: Batch
    values: Values | None = None


@dataclass
class EngineMatches(StageMatches):
    """Implements :class:`StageMatches` on a walk.

    Attributes:
        terms, walk: the terms of the loss, and the forward passes that compute them.
        phases: the stage's settings before the first phase and in each phase.
        coupled: why a batch may not be split, "" if it may.
        micro_batch: samples per forward pass; None for this process's whole share of a batch.
        modes, processes, limit: those of the stage.
        trained: name -> parameter that receives gradients.
        averaged: swaps in the averaged weights if the stage adopts them.
        on_progress: called with the stage's progress before gradients are computed.
        cutting: how batches are split after running out of memory, saved in checkpoints: "micro_batch", "halvings",
            and "redrawn" once it has been said that random numbers differ for it.

    Raises:
        PlanError: the configuration splits batches that may not be split.
    """

    terms: Sequence[Term]
    walk: Walk
    phases: Sequence[Stage]
    coupled: str
    micro_batch: int | None
    modes: Modes
    processes: Distributed
    limit: MemoryLimit
    module: StageModules
    trained: Mapping[str, nn.Parameter]
    averaged: Callable[[], contextlib.AbstractContextManager[None]]
    on_progress: Callable[[float], None]
    cutting: dict[str, Any]
    _losses: dict[str, list[Tensor]] = field(default_factory=dict)
    _samples: int = 0
    _told: Batch | None = None

    def __post_init__(self) -> None:
        self.names = list(self.phases[0].matches)
        self._weighing = [t for t in self.terms if t.objective.weighs_target]
        self._weighing_runs_student = any(r.model == STUDENT for t in self._weighing for r in t.references)
        size = self.phases[0].batch.size
        if not self.coupled:
            return
        if self.micro_batch is not None and self.micro_batch < size:
            raise PlanError(
                f"stages.{self.limit.name}.micro_batch: {self.micro_batch} would split a batch of {size}; "
                f"{self.coupled}",
                f"remove it: `--set stages.{self.limit.name}.micro_batch=null`, or use a smaller batch",
            )
        if self.processes.world > 1:
            raise PlanError(
                f"stages.{self.limit.name}: {self.processes.world} processes would each process a part of a batch; "
                f"{self.coupled}",
                "run this conversion with one process",
            )
        self.micro_batch = None

    def backward(self, batch: Batch, progress: float, *, monitored: bool = True) -> dict[str, float]:
        self._at(progress)
        for term in self.terms:
            term.monitor(monitored)
        self.on_progress(progress)
        earlier = {name: gradient for name, p in self.trained.items() if (gradient := p.grad) is not None}
        if earlier:
            self._drop_gradients()
        with torch.enable_grad():
            figures, losses = self._whole(batch)
        self.processes.reduce_gradients(self.trained.items())
        for name, gradient in earlier.items():
            own = self.trained[name].grad
            self.trained[name].grad = gradient if own is None else own + gradient
        if batch is not self._told:
            # A wrapper computes gradients once more with moved weights; what the step tells is of the weights it began
            # with.
            self._losses, self._samples, self._told = losses, len(batch), batch
        return figures.row(self.processes.sum_dict)

    def measure(self, batches: Iterable[Batch], progress: float = 1.0) -> dict[str, float]:
        rows: list[dict[str, float]] = []
        with self.modes.undisturbed(), self.averaged():
            self._at(progress)
            for batch in batches:
                figures, _ = self._whole(batch)
                rows.append(figures.row(self.processes.sum_dict))
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}

    def monitor(self) -> dict[str, float]:
        out: dict[str, float] = {}
        for term in self.terms:
            where = term.pair.label + (f".{term.pair.site}" if term.pair.site else "")
            with term.guard():
                out.update({f"monitor.{name}.{where}": value for name, value in term.objective.monitor().items()})
        return out

    def after_step(self) -> None:
        self._told = None
        for term in self.terms:
            for value in term.sums():
                value.copy_(self.processes.sum(value))
            with term.guard():
                term.objective.after_step()
            for value in term.sums():
                value.zero_()

    def losses(self) -> dict[str, Tensor]:
        return {
            name: self.processes.joined(torch.cat(parts), self._samples).cpu() for name, parts in self._losses.items()
        }

    def _at(self, progress: float) -> None:
        phase = phase_of(self.phases, progress)
        for term in self.terms:
            term.at(self.phases[phase], phase, progress)

    def _drop_gradients(self) -> None:
        for parameter in self.trained.values():
            parameter.grad = None

    def _whole(self, batch: Batch) -> tuple[StepFigures, dict[str, list[Tensor]]]:
        """Return figures and per-sample losses (match -> micro-batches) of this process's share of a batch, with
        gradients where enabled. Processes synchronise only between the two parts, so that each may split its share as
        its memory requires; a single one has no need to tell them apart.
        """
        mine = self.processes.slice(batch)
        if self.processes.world == 1:
            return self._retrying(lambda: self._passes(*self._weighed(*self._totals(mine))), mine)
        known = [self._weighed(*self._retrying(lambda: self._totals(mine), mine))]
        denominators = known[0][1]

        def attempt() -> tuple[StepFigures, dict[str, list[Tensor]]]:
            return self._passes(known.pop()[0] if known else self._cut(mine), denominators)

        return self._retrying(attempt, mine)

    def _weighed(self, parts: list[_Part], totals: Sequence[Tensor]) -> tuple[list[_Part], dict[str, float]]:
        """Return the micro-batches, and term -> the denominator of its loss over all processes."""
        sums = self.processes.sum(torch.stack(list(totals))).tolist()
        return parts, {t.name: max(total, SMALLEST) for t, total in zip(self.terms, sums, strict=True)}

    def _size(self, samples: int) -> int:
        return min(self.cutting.get("micro_batch") or self.micro_batch or samples, samples)

    def _cut(self, mine: Batch) -> list[_Part]:
        size = self._size(len(mine))
        return [_Part(p, p.seen_by("student")) for p in mine.split(math.ceil(len(mine) / max(size, 1)))]

    def _totals(self, mine: Batch) -> tuple[list[_Part], list[Tensor]]:
        """Return the micro-batches of a batch, and the total weight of its samples for every term."""
        parts = self._cut(mine)
        whole = parts[0].seen if len(parts) == 1 else mine.seen_by("student")
        totals: dict[str, Tensor] = {}
        with torch.no_grad():
            for term in self.terms:
                if not term.objective.weighs_target:
                    totals[term.name] = term.weights(whole).sum().double()
            if self._weighing:
                self._weigh(parts, totals)
        return parts, [totals[t.name] for t in self.terms]

    def _weigh(self, parts: Sequence[_Part], totals: dict[str, Tensor]) -> None:
        """Add the weights that depend on the right side's values."""
        for part in parts:
            part.values = self.walk.teachers(part.batch)

            def use(terms: Sequence[Term], student: Mapping[str, Any], right: Right, seen: Batch = part.seen) -> None:
                for term in terms:
                    weight = term.weights(seen, term.target(right)).sum().double()
                    totals[term.name] = totals.get(term.name, torch.zeros_like(weight)) + weight

            with self.modes.undisturbed() if self._weighing_runs_student else torch.no_grad():
                self.walk.run(part.batch, part.seen, part.values, self._weighing, use, left=False)

    def _passes(
        self, parts: list[_Part], denominators: Mapping[str, float]
    ) -> tuple[StepFigures, dict[str, list[Tensor]]]:
        figures = StepFigures()
        losses: dict[str, list[Tensor]] = {}
        for term in self.terms:
            for value in term.sums():
                value.zero_()  # what an attempt added that ran out of memory
        while parts:
            part = parts.pop(0)
            each: dict[str, Tensor] = {}

            def use(
                terms: Sequence[Term],
                student: Mapping[str, Any],
                right: Right,
                seen: Batch = part.seen,
                each: dict[str, Tensor] = each,
            ) -> None:
                total: Tensor | None = None
                for term in terms:
                    with contextlib.nullcontext() if term.weight else torch.no_grad():
                        own = term.losses(student, right, seen)
                    match = term.pair.match
                    counted = own.detach().float()
                    each[match] = each[match] + counted if match in each else counted
                    loss = own.sum() / denominators[term.name]
                    figures.add(term, loss)
                    if term.weight:
                        weighted = loss if term.weight == 1.0 else term.weight * loss
                        total = weighted if total is None else total + weighted
                if total is not None and total.requires_grad:
                    total.backward()

            values = self.walk.teachers(part.batch) if part.values is None else part.values
            self.walk.run(part.batch, part.seen, values, self.terms, use)
            for match, loss in each.items():
                losses.setdefault(match, []).append(loss)
        return figures, losses

    def _retrying(self, attempt: Callable[[], T], mine: Batch) -> T:
        """Retry ``attempt`` with smaller micro-batches when memory runs out. The result is the same, unless a forward
        pass draws random numbers: those of a part are not those the part had within the whole."""
        state = RandomState.now()
        while True:
            try:
                result = attempt()
                if self.cutting.get("halvings") and not self.cutting.get("redrawn") and state.moved():
                    self.cutting["redrawn"] = True
                    self.limit.say(
                        f"stage {self.limit.name} draws random numbers in its forward passes: micro-batches of "
                        f"{self.cutting['micro_batch']} draw others than whole batches, so from here on the result is "
                        "not that of a run with enough memory"
                    )
                return result
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error, len(mine))
            state.restore()

    def _halve(self, error: Exception, samples: int) -> None:
        now = self._size(samples)
        self.cutting["halvings"] = self.cutting.get("halvings", 0) + 1
        reason = None
        if self.coupled:
            reason = f"the batch cannot be split: {self.coupled}"
        elif now <= 1:
            reason = "a micro-batch is already a single sample"
        elif self.cutting["halvings"] > self.limit.retries:
            reason = f"{self.limit.retries} retries were used up"
        if reason is not None:
            raise OutOfMemoryError(
                f"out of memory in stage {self.limit.name}: {str(error).splitlines()[0]}; {reason} "
                f"(the plan estimated {self.limit.estimated / 1e9:.2f} GB)",
                "use shorter samples, a smaller batch, or another device",
            ) from error
        self._drop_gradients()
        release_memory()
        self.cutting["micro_batch"] = max(1, now // 2)
        self.limit.say(
            f"out of memory in stage {self.limit.name}; retrying with micro-batches of {self.cutting['micro_batch']}"
        )
