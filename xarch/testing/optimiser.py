"""Conformance of optimisers and learning-rate schedules."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from xarch.config.validation import validated
from xarch.contracts.optimiser import OptimiserKind, Schedule
from xarch.errors import UsageError
from xarch.optim.schedules import LearningRate
from xarch.testing.values import random_state, registered


class OptimiserConformance:
    """Subclass it with ``algorithm = "NAME"``.

    Class attributes:
        algorithm: its name, or ``plugin:name``.
        options: of the algorithm.
        lr: a learning rate that suits a small regression.
    """

    algorithm: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    lr: ClassVar[float] = 0.02

    def module(self) -> nn.Module:
        """Return the module to train; it maps [8, 20] to [8, 16]."""
        return nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 16))

    def _made(self, lr: float | None = None) -> tuple[nn.Module, list[nn.Parameter], torch.optim.Optimizer]:
        kind: OptimiserKind = registered("optimiser", self.algorithm)()
        options = validated(kind.Options, self.options, f"optimiser {self.algorithm}")
        with random_state(0):
            module = self.module()
        taken = kind.takes(module)
        known = {n for n, _ in module.named_parameters()}
        assert taken is None or taken <= known, "it selects parameters that do not exist"
        chosen = [p for n, p in module.named_parameters() if taken is None or n in taken]
        assert chosen, "it selects no parameter of the module; override `module`"
        rate = self.lr if lr is None else lr
        group = {"params": chosen, "multiple": 1.0, "weight_decay": 0.0, "lr": rate}
        return module, chosen, kind.build([group], rate, options, fused=False)

    def _step(self, module: nn.Module, optimiser: torch.optim.Optimizer, number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(8, 20, generator=generator)
        loss: Tensor = (module(x) - x[:, :16]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(UsageError):
            validated(registered("optimiser", self.algorithm).Options, {"no_such_option": 1}, "options")

    def test_it_optimises(self) -> None:
        module, _, optimiser = self._made()
        losses = [self._step(module, optimiser, n) for n in range(60)]
        assert sum(losses[-10:]) < sum(losses[:10]), "the loss of a small regression does not fall"

    def test_without_a_learning_rate_nothing_moves(self) -> None:
        module, chosen, optimiser = self._made(lr=0.0)
        before = [p.detach().clone() for p in chosen]
        self._step(module, optimiser, 0)
        assert all(torch.equal(a, b) for a, b in zip(before, chosen, strict=True))

    def test_its_state_is_tensors_by_name(self) -> None:
        """Checkpoints are safetensors: every entry of the state of a parameter is a tensor under a string key."""
        module, chosen, optimiser = self._made()
        self._step(module, optimiser, 0)
        kept = registered("optimiser", self.algorithm)().moments()
        for parameter in chosen:
            state = optimiser.state[parameter]
            assert all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()), f"{state.keys()}"
            numbers = sum(v.numel() for v in state.values() if v.shape == parameter.shape)
            assert numbers == kept * parameter.numel(), f"stores {numbers / parameter.numel():g} numbers, says {kept}"

    def test_a_saved_one_goes_on_the_same(self) -> None:
        module, _, optimiser = self._made()
        for number in range(3):
            self._step(module, optimiser, number)
        weights, state = copy.deepcopy(module.state_dict()), copy.deepcopy(optimiser.state_dict())
        for number in range(3, 6):
            self._step(module, optimiser, number)
        again, _, fresh = self._made()
        again.load_state_dict(weights)
        fresh.load_state_dict(state)
        for number in range(3, 6):
            self._step(again, fresh, number)
        pairs = zip(module.parameters(), again.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), "a resumed run differs"


class ScheduleConformance:
    """Subclass it with ``schedule = "NAME"``.

    Class attributes:
        schedule: its name, or ``plugin:name``.
        options: of the schedule.
        falls: whether it ends at the final value; False if it stays constant or its options set the end.
        monotone: whether it never rises after the warm-up.
    """

    schedule: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    falls: ClassVar[bool] = True
    monotone: ClassVar[bool] = True
    STEPS: ClassVar[int] = 1000

    def _rates(self, final: float, steps: int | None = None) -> list[float]:
        return [self._made(final).factor(step, steps or self.STEPS) for step in range(steps or self.STEPS)]

    def _made(self, final: float) -> LearningRate:
        schedule: Schedule = registered("schedule", self.schedule)()
        options = validated(schedule.Options, self.options, f"schedule {self.schedule}")
        return LearningRate(schedule, options, 0.1, final)

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(UsageError):
            validated(registered("schedule", self.schedule).Options, {"no_such_option": 1}, "options")

    @pytest.mark.parametrize("final", [0.0, 0.1])
    def test_it_ends_at_the_final_value(self, final: float) -> None:
        rates = self._rates(final)
        assert all(0 <= r <= 1 + 1e-9 for r in rates), "a factor must be between 0 and 1; the peak is set by the stage"
        assert max(rates) == pytest.approx(1.0, abs=0.01), "it never reaches the peak"
        if self.falls:
            assert rates[-1] == pytest.approx(final, abs=0.02), f"it ends at {rates[-1]:.3g}, not at {final:g}"

    def test_it_does_not_rise_after_the_warm_up(self) -> None:
        rates = self._rates(0.0)[self.STEPS // 10 :]
        if self.monotone:
            assert all(b <= a + 1e-12 for a, b in itertools.pairwise(rates))

    @pytest.mark.parametrize("steps", [1, 2, 3, 7])
    def test_short_stages(self, steps: int) -> None:
        assert all(0 <= r <= 1 + 1e-9 for r in self._rates(0.0, steps))

    def test_where_it_falls(self) -> None:
        """A stage that stops early continues its schedule from there."""
        made = self._made(0.0)
        start = made.falls_at(self.STEPS)
        assert 0 <= start <= self.STEPS
        assert made.decay_share is None or 0 <= made.decay_share <= 1
        if 100 < start < self.STEPS:
            before = {round(made.factor(step, self.STEPS), 9) for step in range(100, start)}
            assert len(before) == 1, "it falls before `falls_at`"
