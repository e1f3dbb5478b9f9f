"""Conformance of connectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from xarch.config.validation import validated
from xarch.contracts.batch import Batch
from xarch.contracts.connector import Connector
from xarch.contracts.objective import MatchContext
from xarch.contracts.tap import Tap
from xarch.errors import UsageError
from xarch.testing.checks import assert_layout
from xarch.testing.values import (
    assert_close,
    assert_unchanged,
    random_state,
    random_value,
    registered,
    snapshot,
    without_dropout,
)


class ConnectorConformance:
    """Subclass it with ``connector = "NAME"`` and the taps it stands between.

    Class attributes:
        connector: its name, or ``plugin:name``.
        options: of ``through``.
        student, teacher: declarations of both sides; ``teacher = None`` where it needs none.
        samples, sizes: batch size, and sizes of dimensions that the taps leave free.
        data: facts of the data set.
    """

    connector: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    student: ClassVar[Tap] = Tap("student", "hidden", "BLD", {"D": 4})
    teacher: ClassVar[Tap | None] = Tap("teacher", "hidden", "BLD", {"D": 6})
    samples: ClassVar[int] = 4
    sizes: ClassVar[Mapping[str, int]] = {"L": 5}
    data: ClassVar[Mapping[str, Any]] = {}

    def value(self, generator: torch.Generator) -> Any:
        """Return a value of the student's tap, float64."""
        return random_value(self.student, self.samples, self.sizes, generator)

    def _made(self, device: str = "cpu") -> Connector:
        kind: type[Connector] = registered("connector", self.connector)
        options = validated(kind.Options, self.options, f"connector {self.connector}")
        context = MatchContext(match="test", steps=10, data=self.data)
        with torch.device(device), random_state(0):
            made = kind(self.student, self.teacher, options, context)
        return made if device == "meta" else made.double()

    def _value(self) -> Any:
        return self.value(torch.Generator().manual_seed(0))

    def _batch(self, samples: int | None = None) -> Batch:
        count = self.samples if samples is None else samples
        return Batch({"index": torch.arange(count)}, count)

    def test_unknown_options_are_refused(self) -> None:
        kind = registered("connector", self.connector)
        with pytest.raises(UsageError):
            validated(kind.Options, {**self.options, "no_such_option": 1}, "options")
        assert {"*", self.student.layout} & kind.accepts, "it rejects the tap of its own test"

    def test_builds_on_the_meta_device(self) -> None:
        made = self._made("meta")
        assert all(t.device.type == "meta" for t in made.state_dict().values())
        assert made.tap.layout == self._made().tap.layout

    def test_gives_what_it_declares(self) -> None:
        made, value = self._made().eval(), self._value()
        kept = snapshot(value)
        given = made(value, self._batch())
        assert_layout(made.tap, given, self._batch())
        assert_unchanged(kept, value, "the student's value")
        with random_state(3):
            again = made(value, self._batch())
        assert torch.equal(given, again), "eval mode draws random numbers"

    def test_student_and_weights_get_a_gradient(self) -> None:
        made, value = without_dropout(self._made()), self._value().requires_grad_(True)
        made(value, self._batch()).square().sum().backward()
        assert value.grad is not None
        assert bool(value.grad.any()), "no gradient reaches the student through it"
        idle = [n for n, p in made.named_parameters() if p.grad is None]
        assert not idle, f"no gradient reaches {idle[0]}"

    def test_cut_batches_equal_the_whole_unless_it_couples(self) -> None:
        made, value = without_dropout(self._made()), self._value()
        if made.couples == "batch":
            return
        whole: Tensor = made(value, self._batch()).detach()
        for at in range(self.samples):
            part = made(value[at : at + 1], self._batch(1)).detach()
            assert_close(part, whole[at : at + 1], "it depends on the other samples; `couples` must say 'batch'")

    def test_masked_positions_do_not_count(self) -> None:
        """For a connector that combines positions: what a mask leaves out may hold anything."""
        made, value = without_dropout(self._made()), self._value()
        layout = self.student.layout
        masked = next((m for n in range(2, len(layout)) if made.masks(self.student, m := layout[:n])), None)
        if masked is None:
            return
        mask = torch.ones(value.shape[: len(masked)], dtype=value.dtype)
        mask[:, -1] = 0.0
        other = value.clone()
        other[:, -1] = 1e6
        told = "what the mask leaves out changes the result"
        assert_close(made(other, self._batch(), mask=mask), made(value, self._batch(), mask=mask), told)

    def test_a_saved_one_comes_back(self) -> None:
        made, value = self._made(), self._value()
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.1)
        again = self._made()
        again.load_state_dict(made.state_dict(), strict=True)
        assert torch.equal(made.eval()(value, self._batch()), again.eval()(value, self._batch()))
