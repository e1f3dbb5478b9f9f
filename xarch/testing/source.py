"""Conformance of source adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from xarch.contracts.batch import Batch
from xarch.contracts.model import Teacher
from xarch.errors import PlanError, UsageError
from xarch.planning.resolve import resolve_teacher
from xarch.registry.loader import get_registry
from xarch.testing.checks import assert_light_registration, assert_taps
from xarch.testing.models import family_of


class SourceConformance:
    """Subclass it and set ``ref``, or override :meth:`make_ref` to write a model into a folder.

    Class attributes:
        ref: reference of a small model.
        options: of the source.
    """

    ref: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}

    def make_ref(self, folder: Path) -> str:
        """Return the reference of a small model."""
        assert self.ref, f"{type(self).__name__} needs `ref` or `make_ref`"
        return self.ref

    def batch(self, facts: Any) -> Batch:
        """Input for a model with these facts; by default the example of its family."""
        return family_of(facts).example_batch(facts)

    @pytest.fixture(scope="class")
    def written(self, tmp_path_factory: pytest.TempPathFactory) -> str:
        """Return the reference of the small model, which is written once for all tests."""
        return self.make_ref(tmp_path_factory.mktemp("model"))

    @pytest.fixture
    def source(self, written: str) -> Any:
        """Return the resolved adapter."""
        return resolve_teacher(get_registry(), written, self.options, lambda text: None)

    @pytest.fixture
    def teacher(self, source: Any) -> Teacher:
        """Return the loaded model."""
        loaded: Teacher = source.adapter.load(
            source.ref, source.options, device=torch.device("cpu"), dtype=torch.float32
        )
        return loaded

    def test_registration_is_light(self) -> None:
        assert_light_registration()

    def test_description_agrees_with_the_weights(self, source: Any, teacher: Teacher) -> None:
        info = source.adapter.describe(source.ref, source.options)
        assert info.family == teacher.family
        assert info.facts == teacher.facts
        assert info.parameters == sum(p.numel() for p in teacher.module.parameters())
        assert type(info.facts).from_json(info.facts.to_json()) == info.facts
        assert {n: tuple(t.shape) for n, t in teacher.constants().items()} == dict(info.constants)
        assert set(info.constants) <= set(family_of(info.facts).constants)

    def test_it_can_be_cut_for_a_trial_run(self, source: Any) -> None:
        """``--tiny``; a source of small models may return its options as they are."""
        try:
            options = source.adapter.tiny(source.options)
        except UsageError as e:
            raise AssertionError(f"{type(source.adapter).__name__} needs `tiny`, for `xarch convert --tiny`") from e
        cut, whole = (source.adapter.describe(source.ref, o) for o in (options, source.options))
        assert cut.parameters <= whole.parameters

    def test_teacher_is_frozen_and_in_eval_mode(self, teacher: Teacher) -> None:
        assert not teacher.module.training
        assert not any(p.requires_grad for p in teacher.module.parameters())
        assert len(teacher.fingerprint) >= 8

    def test_taps_are_as_declared(self, teacher: Teacher) -> None:
        assert list(teacher.taps()) == list(teacher.facts.taps())
        assert_taps(teacher, self.batch(teacher.facts))

    def test_a_run_stops_after_the_last_wanted_tap(self, teacher: Teacher) -> None:
        first = next(iter(teacher.taps()))
        assert set(teacher.collect(self.batch(teacher.facts), {first})) == {first}

    def test_random_weights_have_the_same_architecture(self, source: Any, teacher: Teacher) -> None:
        """The control of every method; a source that cannot make one says so with a PlanError."""

        def made(seed: int) -> Teacher:
            found: Teacher = source.adapter.random(source.ref, source.options, device=torch.device("cpu"), seed=seed)
            return found

        try:
            one, again, other = made(1), made(1), made(2)
        except PlanError:
            return
        assert one.facts == teacher.facts
        assert list(one.weights()) == list(teacher.weights())
        assert one.fingerprint == again.fingerprint != other.fingerprint
        assert all(torch.equal(t, again.weights()[n]) for n, t in one.weights().items())
        assert any(not torch.equal(t, other.weights()[n]) for n, t in one.weights().items())
        assert not any(p.requires_grad for p in one.module.parameters())
