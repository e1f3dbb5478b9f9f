"""Conformance of batch steps: declared tensors are correct, and a resumed run repeats its batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from xarch.config.validation import validated
from xarch.contracts.batch import Batch
from xarch.contracts.batch_step import BatchStep, StepContext
from xarch.contracts.data import TensorInfo
from xarch.contracts.model import Sink, Student, Teacher
from xarch.contracts.tap import Tap
from xarch.errors import UsageError
from xarch.testing.values import assert_unchanged, global_draws, random_state, registered, snapshot


class BatchStepConformance:
    """Subclass it with ``step = "NAME"``, and describe a batch.

    Class attributes:
        step: its name, or ``plugin:name``.
        options: of the step.
        tensors: batch key -> layout and sizes of the data, as the plan sees them.
        data: facts of the data set.
        models: batch keys that teacher and student read if the step runs them; empty if it runs neither.

    Override :meth:`batch` for values that are not normal; :meth:`teacher`, :meth:`student` if it runs them.
    """

    step: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    tensors: ClassVar[Mapping[str, TensorInfo]] = {"x": TensorInfo("BD", {"D": 3})}
    data: ClassVar[Mapping[str, Any]] = {}
    models: ClassVar[Collection[str]] = ()
    samples: ClassVar[int] = 6

    def batch(self) -> Batch:
        """Return a batch with the declared tensors."""
        generator = torch.Generator().manual_seed(0)
        made = {}
        for key, info in self.tensors.items():
            shape = [self.samples, *(info.shape.get(letter, 3) for letter in info.layout[1:])]
            made[key] = torch.randn(shape, generator=generator)
        return Batch(made, self.samples)

    def teacher(self) -> Teacher | None:
        """The teacher of the context."""
        return None

    def student(self) -> Student:
        """The student of the context."""
        return _Nobody()

    def _made(self) -> BatchStep:
        kind: type[BatchStep] = registered("batch_step", self.step)
        return kind(validated(kind.Options, self.options, f"batch step {self.step}"), self.data)

    def _run(self, batch: Batch, *, seed: int = 0, training: bool = True) -> Batch:
        with torch.no_grad():
            return self._made()(batch, self._context(seed, training))

    def _context(self, seed: int, training: bool) -> StepContext:
        generator = torch.Generator().manual_seed(seed)
        return StepContext(self.student(), self.teacher(), step=3, steps=10, training=training, generator=generator)

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(UsageError):
            validated(registered("batch_step", self.step).Options, {**self.options, "no_such_option": 1}, "options")

    def test_reads_only_what_it_declares(self) -> None:
        step, batch = self._made(), self.batch()
        reads = set(step.reads())
        assert reads <= set(self.tensors), f"it reads {sorted(reads - set(self.tensors))}, which the test lacks"
        kept = {k: v for k, v in batch.tensors.items() if k.split("@")[0] in reads | set(self.models)}
        alone = kept or {"index": torch.arange(self.samples)}
        try:
            few = self._run(Batch(alone, batch.units))
        except KeyError as e:
            raise AssertionError(f"it reads {e}, which `reads` does not declare") from e
        whole = self._run(batch)
        for key in step.makes(self.tensors):
            assert torch.equal(few[key], whole[key]), f"{key} depends on tensors that `reads` does not declare"

    def test_makes_what_it_declares(self) -> None:
        step, batch = self._made(), self.batch()
        made = step.makes(self.tensors)
        for training in (True, False):
            after = self._run(self.batch(), training=training)
            new = set(after.tensors) - set(batch.tensors)
            assert new <= set(made), f"it makes {sorted(new - set(made))}, which `makes` does not declare"
            assert set(batch.tensors) <= set(after.tensors), "it drops tensors"
            for key, info in {**self.tensors, **made}.items():
                _assert_as(info, key, after[key], len(after))
            assert all(len(v) == len(after) for v in after.tensors.values()), "tensors of different lengths"
            assert after.units > 0

    def test_depends_on_its_generator_alone(self) -> None:
        """A resumed run and a second process make the same batch, regardless of other random draws."""
        for training in (True, False):
            with random_state(1):
                before = global_draws()
                one = self._run(self.batch(), training=training)
                assert global_draws() == before, "it draws from the global random state; use context.generator"
            with random_state(2):
                two = self._run(self.batch(), training=training)
            for key, value in one.tensors.items():
                assert torch.equal(value, two[key]), f"{key} depends on the global random state; use context.generator"

    def test_its_input_stays_as_it_was(self) -> None:
        batch = self.batch()
        kept = snapshot(batch.tensors)
        self._run(batch)
        assert_unchanged(kept, batch.tensors, "the batch")


def _assert_as(info: TensorInfo, key: str, value: Tensor, samples: int) -> None:
    assert value.ndim == len(info.layout), f"{key}: {tuple(value.shape)} is not {info.layout}"
    sizes = {**info.shape, info.layout[0]: samples}
    for letter, size in zip(info.layout, value.shape, strict=True):
        assert size == sizes.get(letter, size), f"{key}: {letter} is {size}, declared {sizes[letter]}"


class _Nobody(Student):
    """A student without a tap."""

    def __init__(self) -> None:
        self.module, self.family, self.facts = nn.Module(), "", None

    def taps(self) -> Mapping[str, Tap]:
        return {}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        assert not wanted, "it runs the student; override `student`"

    def param_groups(self) -> Mapping[str, list[str]]:
        return {}
