"""Runs a stage's training step on the meta device: no memory and no arithmetic, but all tensors have their actual
sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.local import LocalStudent, Site
from xarch.contracts.model import Student
from xarch.contracts.objective import MatchContext
from xarch.contracts.tap import Tap
from xarch.matching.build import BuiltMatch, build_match
from xarch.matching.pairing import Pair
from xarch.matching.references import BATCH, STUDENT, Reference
from xarch.planning.trace import Cost, Trace
from xarch.registry.registry import Registry


class Untraceable(Exception):
    """Raised when a value cannot be made without a real model, e.g. a structured value of the teacher."""


@dataclass(frozen=True)
class StepTrace:
    """Trace of a training step of one micro-batch.

    Attributes:
        pairs: pairs of the stage.
        student: on the meta device.
        trained: names of its trained parameters.
        batch: on the meta device, as seen by the student.
        teachers: name -> taps; "" is the main teacher.
        sizes: sizes of free dimensions.
        registry, context: for building objectives and connectors.
    """

    pairs: Sequence[Pair]
    student: Student
    trained: Collection[str]
    batch: Batch
    teachers: Mapping[str, Mapping[str, Tap]]
    sizes: Mapping[str, int]
    registry: Registry
    context: MatchContext

    def measure(self) -> Cost:
        """Return the cost of forward and backward: the largest graph at any time, and the total work.

        Raises:
            Exception: any exception of a model, an objective or an operator that cannot run on the meta device.
        """
        with torch.device("meta"), _training(self.student.module, self.trained):
            local = self.pairs[0].site is not None
            return self._sites() if local else self._whole(self.pairs)

    def _whole(self, pairs: Sequence[Pair]) -> Cost:
        wanted = {name for p in pairs for name in p.student}
        wanted |= {r.name for p in pairs for r in (*p.right.values(), *p.aux.values()) if r.model == STUDENT}
        with torch.no_grad():
            plain = self.student.collect(self.batch, wanted)
        trace = Trace([*_tensors(self.student.module), *self.batch.tensors.values()])
        built = self._built(pairs)
        with trace.recording():
            values = self.student.collect(self.batch, wanted)
            self._backward(pairs, built, values, plain)
        return trace.cost

    def _sites(self) -> Cost:
        assert isinstance(self.student, LocalStudent)
        sites = self.student.sites()
        total = Cost()
        known: dict[object, Cost] = {}
        for name in dict.fromkeys(p.site for p in self.pairs):
            site = sites[str(name)]
            pairs = [p for p in self.pairs if p.site == name]
            alike = self._signature(site, pairs)
            if alike not in known:
                known[alike] = self._site(self.student, site, pairs)
            total = total.plus(known[alike])
        return total

    def _signature(self, site: Site, pairs: Sequence[Pair]) -> object:
        """Return a key that is equal for sites whose steps cost the same."""
        shapes = [tuple(p.shape) for n, p in self.student.module.named_parameters() if site.owns(n)]
        inputs = [self._declared(Reference("", tap, self.teachers[""][tap])) for tap in site.inputs.values()]
        return (tuple(shapes), str(inputs), tuple((p.match, tuple(p.student)) for p in pairs))

    def _declared(self, reference: Reference) -> tuple[str, tuple[tuple[str, int], ...]]:
        return reference.tap.layout, tuple(sorted(reference.tap.shape.items()))

    def _site(self, student: LocalStudent, site: Site, pairs: Sequence[Pair]) -> Cost:
        inputs = {local: self._value(self.teachers[""][tap]) for local, tap in site.inputs.items()}
        wanted = {name for p in pairs for name in p.student}
        wanted |= {r.name for p in pairs for r in (*p.right.values(), *p.aux.values()) if r.model == STUDENT}
        with torch.no_grad():
            plain = student.run_site(site.name, inputs, wanted, self.batch)
        trace = Trace([*_tensors(student.module), *self.batch.tensors.values(), *_flat(inputs)])
        built = self._built(pairs)
        with trace.recording():
            values = student.run_site(site.name, inputs, wanted, self.batch)
            self._backward(pairs, built, values, plain)
        return trace.cost

    def _built(self, pairs: Sequence[Pair]) -> list[BuiltMatch]:
        made = []
        for pair in pairs:
            where = f"matches.{pair.match}"
            made.append(build_match(pair, self.registry, replace(self.context, match=pair.match), where))
        return made

    def _backward(
        self, pairs: Sequence[Pair], built: Sequence[BuiltMatch], values: Mapping[str, Any], plain: Mapping[str, Any]
    ) -> None:
        losses = []
        for pair, parts in zip(pairs, built, strict=True):
            left: Any = {name: values[name] for name in pair.student}
            if not pair.joined:
                left = next(iter(left.values()))
            if parts.connector is not None:
                left = parts.connector(left, self.batch, mask=self._mask(pair.masks[0].connector))
            own = next(iter(pair.student))
            right: Any = {k: self._other(r, pair, k or own, plain) for k, r in pair.right.items()}
            if not pair.several:
                right = right.get("")
            aux = {k: self._other(r, pair, own, plain) for k, r in pair.aux.items()}
            mask = self._mask(pair.masks[0].objective)
            losses.append(parts.objective(left, right, self.batch, mask=mask, **aux).sum())
        total = torch.stack(losses).sum()
        if total.requires_grad:
            total.backward()

    def _mask(self, key: str | None) -> Tensor | None:
        return None if key is None else self.batch[key]

    def _other(self, reference: Reference, pair: Pair, own: str, plain: Mapping[str, Any]) -> Any:
        """Return a value of the right side: from the batch, from the student, or built from the tap's declaration."""
        if reference.model == BATCH:
            return self.batch[reference.name]
        if reference.model == STUDENT and reference.name in plain:
            return plain[reference.name]
        tap = pair.student.get(own)
        alike = tap is not None and tap.layout == reference.tap.layout and dict(tap.shape) == dict(reference.tap.shape)
        # A structured teacher value cannot be synthesised, but the student's with the same declaration is equivalent.
        return plain[own] if alike else self._value(reference.tap)

    def _value(self, tap: Tap) -> Tensor:
        if not tap.dense:
            raise Untraceable(f"{tap.name} ({tap.layout}) is a structured value")
        shape = [len(self.batch)]
        for letter in tap.layout[1:]:
            size = tap.shape.get(letter, self.sizes.get(letter))
            if size is None:
                raise Untraceable(f"the size of {letter} in {tap.name} ({tap.layout}) is not known")
            shape.append(size)
        return torch.empty(shape, device="meta")


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _flat(values: Mapping[str, Any]) -> list[Tensor]:
    return [v for v in values.values() if isinstance(v, Tensor)]


@contextlib.contextmanager
def _training(module: nn.Module, trained: Collection[str]) -> Iterator[None]:
    """Put the module in train mode with gradients for trained parameters; restore it on exit."""
    before = {p: p.requires_grad for p in module.parameters()}
    mode = module.training
    try:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in trained)
        module.train()
        yield
    finally:
        module.train(mode)
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)
            parameter.grad = None
