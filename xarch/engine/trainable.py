"""The parameters that a stage trains, and their optimisers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xarch.config.schema import Group, Stage
from xarch.contracts.model import Student
from xarch.contracts.optimiser import OptimiserWrapper
from xarch.contracts.stage import StageTrainable
from xarch.engine.distributed import Distributed
from xarch.engine.modes import Modes
from xarch.engine.optimisers import Optimisers
from xarch.engine.terms import StageModules, Term
from xarch.errors import UsageError
from xarch.optim.ema import EMA
from xarch.optim.groups import learning, select

BUFFER = "buffer|"
AVERAGE = "ema|"
_CHANGED = "revert the change to the run's plan.json, or start a new run in another folder"


@dataclass(frozen=True)
class Trained:
    """A trainable parameter.

    Attributes:
        parameter, group: the parameter and the name of its group.
        decay: its weight decay.
        site: its site in a local stage, "" otherwise.
    """

    parameter: nn.Parameter
    group: str
    decay: float
    site: str


def trained_parameters(
    student: Student, modules: StageModules, terms: Sequence[Term], phases: Sequence[Stage], owner: Callable[[str], str]
) -> dict[str, Trained]:
    """Return name -> parameter for everything a stage trains; freeze the rest of the student.

    Args:
        owner: returns the site of a student parameter, "" in a global stage.
    """
    stage = phases[0]
    groups = learning(phases)
    in_group = select(student, stage.trains)
    no_decay = set(student.no_decay())
    found: dict[str, Trained] = {}

    def add(name: str, parameter: nn.Parameter, group: str | None, decays: bool, site: str) -> None:
        parameter.requires_grad_(group in groups)
        parameter.grad = None
        if group is None or group not in groups:
            return
        own = groups[group].weight_decay
        decay = own if own is not None else stage.optimiser.weight_decay if decays else 0.0
        found[name] = Trained(parameter, group, decay, site)

    for name, parameter in student.module.named_parameters():
        add(name, parameter, in_group.get(name), name not in no_decay, owner(name))
    sites = {t.name: t.pair.site or "" for t in terms}
    for name, parameter in modules.named_parameters():
        kind, term, _ = name.split(".", 2)
        add(name, parameter, kind, parameter.ndim > 1, sites[term])
    return found


@dataclass
class Trainable(StageTrainable):
    """Implements :class:`StageTrainable`.

    Attributes:
        trained: the trainable parameters.
        optimisers: their optimisers.
        wrappers: optimiser wrappers with their options.
        lr, clipping: settings of the stage.
        buffers: name -> buffer of student, connectors and objectives.
        modes, processes: those of the stage.
        ema, adopts: the EMA, if any, and whether the stage ends with it.
    """

    trained: Mapping[str, Trained]
    optimisers: Optimisers
    wrappers: Sequence[tuple[OptimiserWrapper, Any]]
    lr: float
    clipping: float
    buffers: Mapping[str, Tensor]
    modes: Modes
    processes: Distributed
    ema: EMA | None = None
    adopts: bool = False
    named: dict[str, nn.Parameter] = field(init=False)
    _resting: set[str] = field(default_factory=set)
    _by_site: dict[str, list[nn.Parameter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.named = {name: t.parameter for name, t in self.trained.items()}
        for trained in self.trained.values():
            self._by_site.setdefault(trained.site, []).append(trained.parameter)

    def at(self, trains: Mapping[str, Group]) -> None:
        """Apply the groups' learning rates of a phase; a group at 0 does not train."""
        rates = {name: group.lr for name, group in trains.items()}
        self.optimisers.multiples = rates
        self._resting = {name for name, t in self.trained.items() if rates.get(t.group, 1.0) == 0}

    def zero_grad(self) -> None:
        for parameter in self.named.values():
            parameter.grad = None

    def clip(self) -> float:
        for name in self._resting:
            self.named[name].grad = None
        total = 0.0
        for parameters in self._by_site.values():
            gradients = [gradient for p in parameters if (gradient := p.grad) is not None]
            if not gradients:
                continue
            norm = torch.nn.utils.get_total_norm(gradients)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            if self.clipping > 0:
                factor = (self.clipping / (norm + 1e-6)).clamp(max=1.0)
                torch._foreach_mul_(gradients, factor.to(gradients[0].device))
            total += float(norm) ** 2
        return total**0.5

    def again(self) -> Sequence[contextlib.AbstractContextManager[None]]:
        return [self._moved(wrapper, options) for wrapper, options in self.wrappers]

    @contextlib.contextmanager
    def _moved(self, wrapper: OptimiserWrapper, options: Any) -> Iterator[None]:
        parameters = list(self.named.values())
        with torch.no_grad():
            moved = wrapper.perturb(parameters, options)
        self.zero_grad()
        try:
            with self.modes.repeated():
                yield
        finally:
            with torch.no_grad():
                wrapper.restore(parameters, moved)

    def step(self, factor: float) -> float:
        lr = self.lr * factor
        self.optimisers.step(lr)
        if self.ema is not None:
            self.ema.update()
        return lr

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the student the weights that the stage would end with; restore them on exit."""
        if self.ema is None or not self.adopts:
            yield
            return
        with self.ema.swapped():
            yield

    def finish(self) -> None:
        """Adopt the average permanently, if the stage does so."""
        if self.ema is not None and self.adopts:
            self.ema.adopt()

    def snapshot(self) -> dict[str, Tensor]:
        with self.averaged():
            return {name: value.clone() for name, value in self._values().items()}

    def restore(self, values: Mapping[str, Tensor]) -> None:
        self._load_values(values)
        self.optimisers.forget()
        if self.ema is not None:
            self.ema.restart()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        moments = self.optimisers.state(self.processes.whole)
        if self.ema is not None:
            moments |= {AVERAGE + name: self.processes.whole(value) for name, value in self.ema.state().items()}
        return self._values(), moments

    def load(self, values: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        average = {k.removeprefix(AVERAGE): v for k, v in moments.items() if k.startswith(AVERAGE)}
        rest = {k: v for k, v in moments.items() if not k.startswith(AVERAGE)}
        self._check(values)
        if bool(average) != (self.ema is not None):
            raise UsageError("the checkpoint and the plan differ in `ema`", _CHANGED)
        self.optimisers.check(rest, _CHANGED)
        self._load_values(values)
        self.optimisers.load(rest, self.processes.like)
        if self.ema is not None:
            places = {name: self.named[name] for name in average if name}
            self.ema.load({name: self.processes.like(v, places[name]) if name else v for name, v in average.items()})

    def _values(self) -> dict[str, Tensor]:
        values = {name: self.processes.whole(p.detach()) for name, p in self.named.items()}
        return values | {BUFFER + name: buffer.detach() for name, buffer in self.buffers.items()}

    def _load_values(self, values: Mapping[str, Tensor]) -> None:
        self._check(values)
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(self.processes.like(values[name], parameter))
            for name, buffer in self.buffers.items():
                buffer.copy_(values[BUFFER + name])

    def _check(self, values: Mapping[str, Tensor]) -> None:
        """Check that a checkpoint matches the plan: a plan edited by hand must not resume with only part of the
        state."""
        wanted = [*self.named, *(BUFFER + name for name in self.buffers)]
        missing = sorted(name for name in wanted if name not in values)
        if missing:
            raise UsageError(f"the checkpoint lacks {missing[0]}, which the plan trains", _CHANGED)


def all_buffers(student: Student, modules: StageModules) -> dict[str, Tensor]:
    """Return name -> buffer for all buffers saved with a running stage."""
    own = {f"student.{name}": buffer for name, buffer in student.module.named_buffers()}
    return own | dict(modules.named_buffers())
