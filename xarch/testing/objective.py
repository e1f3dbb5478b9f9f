"""Conformance of objectives: what the engine relies on when it splits batches, masks positions and sums losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from xarch.config.validation import validated
from xarch.contracts.batch import Batch
from xarch.contracts.objective import MatchContext, Objective
from xarch.contracts.tap import Tap
from xarch.errors import UsageError
from xarch.testing.values import (
    assert_close,
    assert_unchanged,
    random_state,
    random_value,
    registered,
    snapshot,
    tensors_of,
    without_dropout,
)

GAP = 200.0
"""Difference of logits at which a softmax is saturated at 0 or 1."""
COUPLED = "depends on the other samples of the batch; `couples` must say 'batch'"


class ObjectiveConformance:
    """Subclass it with ``objective = "NAME"`` and the two taps it compares.

    Class attributes:
        objective: its name, or ``plugin:name``.
        options: of the match.
        student, teacher: declarations of both sides; a mapping of name to Tap for the student's where taps are joined;
            ``teacher = None`` for a term of the student alone.
        samples, sizes: batch size, and sizes of dimensions that the taps leave free.
        data, constants: facts of the data set, and (teacher's, student's) constants.
        smooth: whether it is twice differentiable everywhere (False skips the numerical check).

    Structured forms: override :meth:`student_value` and :meth:`teacher_value`; labels and the like too.
    """

    objective: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    student: ClassVar[Any] = Tap("student", "hidden", "BLD", {"D": 4})
    teacher: ClassVar[Any] = Tap("teacher", "hidden", "BLD", {"D": 4})
    samples: ClassVar[int] = 4
    sizes: ClassVar[Mapping[str, int]] = {"L": 5}
    data: ClassVar[Mapping[str, Any]] = {}
    constants: ClassVar[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = ({}, {})
    smooth: ClassVar[bool] = True

    def student_value(self, generator: torch.Generator) -> Any:
        """Return a value of the student's side, float64."""
        return self._value(self.student, generator)

    def teacher_value(self, generator: torch.Generator) -> Any:
        """Return a value of the right side, float64; None if there is none."""
        return None if self.teacher is None else self._value(self.teacher, generator)

    def batch(self) -> Batch:
        """Return the batch, with the tensors the objective reads in addition to its two sides."""
        return Batch({"index": torch.arange(self.samples)}, self.samples)

    def aux(self, generator: torch.Generator) -> dict[str, Any]:
        """Return auxiliary values, as named in ``aux`` of a match."""
        return {}

    def _value(self, tap: Any, generator: torch.Generator) -> Any:
        if isinstance(tap, Mapping):
            return {name: self._value(one, generator) for name, one in tap.items()}
        return random_value(tap, self.samples, self.sizes, generator)

    def _first(self) -> Tap:
        tap: Tap = next(iter(self.student.values())) if isinstance(self.student, Mapping) else self.student
        return tap

    def _kind(self) -> type[Objective]:
        kind: type[Objective] = registered("objective", self.objective, self._first().layout)
        return kind

    def _options(self) -> BaseModel:
        return validated(self._kind().Options, self.options, f"objective {self.objective}")

    def _made(self, device: str = "cpu") -> Objective:
        teacher, student = self.constants
        context = MatchContext(match="test", steps=10, data=self.data, teacher=teacher, student=student)
        with torch.device(device), random_state(0):
            made = self._kind()(self.student, self.teacher, self._options(), context)
        return made if device == "meta" else made.double()

    def _sides(self, seed: int = 0) -> tuple[Any, Any, dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        return self.student_value(generator), self.teacher_value(generator), self.aux(generator)

    def _loss(self, made: Objective, sides: tuple[Any, Any, dict[str, Any]], **more: Any) -> Tensor:
        student, teacher, aux = sides
        batch = more.pop("batch", None) or self.batch()
        return made(student, teacher, batch, **more, **aux)

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(UsageError):
            validated(self._kind().Options, {**self.options, "no_such_option": 1}, "options")

    def test_it_takes_what_it_says(self) -> None:
        kind = self._kind()
        assert kind.joins or not isinstance(self.student, Mapping), "takes several student taps, but `joins` is False"
        if isinstance(self.student, Mapping):
            return
        assert kind.takes(self.student, self.teacher), "it rejects the taps of its own test"
        assert kind.check(self.student, self.teacher) is None
        strange = Tap("strange", "hidden", "no-such-form")
        if not kind.takes(strange, self.teacher):
            return
        assert any(a == "*" for a, _ in kind.accepts), "it accepts a layout that no tap declared"

    def test_builds_on_the_meta_device(self) -> None:
        made = self._made("meta")
        assert all(t.device.type == "meta" for t in made.state_dict().values())
        assert made.couples in ("sample", "batch")

    def test_one_loss_and_one_weight_a_sample(self) -> None:
        made, sides = self._made().eval(), self._sides()
        before = [snapshot(s) for s in sides]
        loss, weight = self._loss(made, sides), self._weight(made, sides)
        assert loss.shape == (self.samples,), f"{tuple(loss.shape)} is not one loss per sample"
        assert loss.dtype in (torch.float32, torch.float64), f"computed in {loss.dtype}, wanted at least float32"
        assert bool(torch.isfinite(loss).all())
        assert weight.shape == (self.samples,), f"{tuple(weight.shape)} is not one weight per sample"
        assert bool((weight >= 0).all())
        for kept, side, what in zip(before, sides, ("the student", "the right side", "aux"), strict=True):
            assert_unchanged(kept, side, what)

    def test_it_repeats_in_eval_mode(self) -> None:
        made, sides = self._made().eval(), self._sides()
        with random_state(1):
            one = self._loss(made, sides)
        with random_state(2):
            assert torch.equal(one, self._loss(made, sides)), "eval mode draws random numbers, or keeps a state"

    def test_cut_batches_equal_the_whole_unless_it_couples(self) -> None:
        made, sides = without_dropout(self._made()), self._sides()
        if made.couples == "batch":
            return
        whole, weights = self._loss(made, sides).detach(), self._weight(made, sides)
        for at in range(self.samples):
            part = tuple(_narrow(s, at) for s in sides)
            batch = self.batch().narrow(at, at + 1)
            loss = made(part[0], part[1], batch, **part[2]).detach()
            assert_close(loss, whole[at : at + 1], f"the loss {COUPLED}")
            weight = self._weight(made, part, batch=batch)
            assert_close(weight, weights[at : at + 1], f"the weight {COUPLED}")

    def test_what_it_adds_up_is_that_of_the_whole_batch_and_of_training_alone(self) -> None:
        made, sides = without_dropout(self._made()), self._sides()
        if not made.summed:
            return

        def added() -> dict[str, Tensor]:
            found = {name: made.get_buffer(name).clone() for name in made.summed}
            for name in found:
                made.get_buffer(name).zero_()
            return found

        self._loss(made.eval(), sides)
        assert not any(bool(value.any()) for value in added().values()), "it adds to `summed` outside of training"
        self._loss(made.train(), sides)
        whole = added()
        assert any(bool(value.any()) for value in whole.values()), "training adds nothing to `summed`"
        for at in range(self.samples):
            part = tuple(_narrow(s, at) for s in sides)
            made(part[0], part[1], self.batch().narrow(at, at + 1), **part[2])
        for name, value in added().items():
            assert_close(value, whole[name], f"parts of a batch add another {name} than the whole")

    def test_masks_are_respected(self) -> None:
        made = self._made().eval()
        for layout in self._masks():
            student, teacher, aux = self._sides()
            mask = self._mask(layout)
            other = self._sides(seed=1)
            mixed = tuple(_mix(a, b, mask) for a, b in zip((student, teacher, aux), other, strict=True))
            one = self._loss(made, (student, teacher, aux), mask=mask)
            two = self._loss(made, (mixed[0], mixed[1], mixed[2]), mask=mask)
            weight = self._weight(made, (student, teacher, aux), mask=mask)
            if made.couples == "sample":
                assert_close(one, two, f"positions outside the mask ({layout}) count")
                empty = mask.reshape(self.samples, -1).sum(1) == 0
                assert bool((weight[empty] == 0).all()), "a sample without any position counts"
            assert_close(one.sum(), two.sum(), f"positions outside the mask ({layout}) count")
            whole = torch.ones_like(mask)
            loss, count = self._loss(made, other, mask=whole), self._weight(made, other, mask=whole)
            plain, unmasked = self._loss(made, other), self._weight(made, other)
            told = "a mask that keeps every position changes the loss"
            assert_close(loss.sum() / count.sum(), plain.sum() / unmasked.sum(), told)

    def test_the_gradient_reaches_the_student_alone(self) -> None:
        made, sides = without_dropout(self._made()), self._sides()
        leaves = [t.requires_grad_(True) for t in tensors_of(sides[0])]
        self._loss(made, sides).sum().backward()
        assert any(t.grad is not None and bool(t.grad.any()) for t in leaves), "no gradient reaches the student"
        assert all(t.grad is None or bool(torch.isfinite(t.grad).all()) for t in leaves)
        assert not any(t.requires_grad for t in tensors_of(sides[1]))

    def test_the_gradient_is_that_of_the_loss(self) -> None:
        """The gradient agrees with finite differences in float64."""
        if not self.smooth:
            pytest.skip("it is not smooth everywhere")
        made, sides = self._made().eval(), self._sides()
        leaves = [t.requires_grad_(True) for t in tensors_of(sides[0])]

        def loss(*values: Tensor) -> Tensor:
            found = self._loss(made, sides)
            assert found.dtype == torch.float64, "float64 values become float32; compute in *at least* float32"
            return found

        assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-5, rtol=1e-3)

    def test_large_gaps_stay_finite(self) -> None:
        made, sides = self._made().eval(), self._sides()
        with torch.no_grad():
            for side, sign in ((sides[0], 1.0), (sides[1], -1.0)):
                for t in tensors_of(side):
                    t.copy_(t.sign() * sign * GAP)
        leaves = [t.requires_grad_(True) for t in tensors_of(sides[0])]
        loss = self._loss(made, sides)
        loss.sum().backward()
        assert bool(torch.isfinite(loss).all()), f"not finite for values of ±{GAP:g}"
        assert all(t.grad is None or bool(torch.isfinite(t.grad).all()) for t in leaves), "the gradient is not finite"

    def _masks(self) -> list[str]:
        tap = self._first()
        if not tap.dense:
            return []
        kind = self._kind()
        return [tap.layout[:n] for n in range(1, len(tap.layout)) if kind.masks(tap, tap.layout[:n])]

    def _mask(self, layout: str) -> Tensor:
        """Return a mask: the first sample has no position, the others lack some."""
        tap = self._first()
        shape = [self.samples, *(tap.shape.get(c, self.sizes.get(c, 3)) for c in layout[1:])]
        mask = (torch.rand(shape, generator=torch.Generator().manual_seed(5)) > 0.4).double()
        mask[0], mask[1] = 0.0, 1.0
        return mask

    def _weight(self, made: Objective, sides: tuple[Any, ...], **more: Any) -> Tensor:
        batch = more.pop("batch", None) or self.batch()
        return made.weight(batch, sides[1] if made.weighs_target else None, **more)


def _narrow(value: Any, at: int) -> Any:
    """Return one sample of a value as a batch of one."""
    if isinstance(value, Tensor):
        return value[at : at + 1]
    if isinstance(value, Mapping):
        return {k: _narrow(v, at) for k, v in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    narrow = getattr(value, "narrow", None)
    assert narrow is not None, f"{type(value).__name__} needs narrow(start, stop), because the engine splits batches"
    return narrow(at, at + 1)


def _mix(value: Any, other: Any, mask: Tensor) -> Any:
    """Return ``value`` inside the mask and distant values outside."""
    if isinstance(value, Mapping):
        return {k: _mix(v, other[k], mask) for k, v in value.items()}
    if not isinstance(value, Tensor) or value.shape[: mask.ndim] != mask.shape:
        return value
    shown = mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim)) != 0
    far = other * 50 if value.is_floating_point() else other
    return torch.where(shown, value, far)
