"""Teacher and student as the engine sees them: models whose taps can be read while they run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.tap import Tap

Sink = Callable[[str, Any], None]
"""Called with (tap name, value) the moment the value exists, while the model is still running."""


class TapModel(ABC):
    """A model with taps. ``run`` pushes values instead of returning them, so that a value can be used and dropped
    before the next layer runs: memory stays at one layer however deep the model is.

    Attributes:
        module: the real ``nn.Module``.
        family: name of the family contract it fulfils ("decoder", ...).
        facts: the family's description of the architecture (a frozen dataclass, see the family's package).
    """

    module: nn.Module
    family: str
    facts: Any

    @abstractmethod
    def taps(self) -> Mapping[str, Tap]:
        """Every tap by name, in the order in which a run reaches them."""

    @abstractmethod
    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Run on ``batch`` and push each wanted tap into ``sink``; may stop after the last wanted one.

        The caller decides about gradients; the model never switches them on or off.
        """

    def work(self, sample: Mapping[str, Any]) -> float:
        """Multiply-adds of a forward pass over one unit of such a sample, for the plan's estimate of time.

        By default one a parameter, as of a token in dense layers. Facts may have the same method: a teacher is planned
        without its weights.
        """
        return float(sum(p.numel() for p in self.module.parameters()))

    def collect(self, batch: Batch, wanted: Collection[str]) -> dict[str, Any]:
        """Run and return the wanted values together."""
        values: dict[str, Any] = {}
        self.run(batch, wanted, values.__setitem__)
        return values


class Teacher(TapModel):
    """A source adapter's model: in eval mode, without gradients, never written to."""

    ref: str
    fingerprint: str
    """sha256 over the weights; identifies the teacher in caches and manifests."""

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """Canonical name -> tensor, as the family names them (lazy views; no copies)."""

    def processor(self) -> Any:
        """Tokenizer or image processor that belongs to the weights, or None."""
        return None

    def save_processor(self, folder: str) -> None:
        """Write the processor's files into ``folder`` so that the student can be used alone."""


@dataclass(frozen=True)
class Site:
    """One student module that can be trained alone on the teacher's own input at that place.

    Attributes:
        name: e.g. ``blocks.3``.
        inputs: local name -> teacher tap fed into the site, e.g. ``{"input": "blocks.3.input"}``.
        taps: local name -> the site's own taps, e.g. ``{"mixer_out": Tap("blocks.3.mixer_out", ...)}``.
    """

    name: str
    inputs: Mapping[str, str]
    taps: Mapping[str, Tap] = field(default_factory=dict)


@dataclass(frozen=True)
class Initialisation:
    """What initialisation did with every tensor of the student."""

    copied: tuple[str, ...] = ()
    mapped: tuple[str, ...] = ()
    new: tuple[str, ...] = ()


class Solver(ABC):
    """Closed-form fit of one site: sees the teacher's taps batch by batch, then solves. No gradients."""

    inputs: Collection[str]
    """Teacher taps it needs, by full name."""

    @abstractmethod
    def observe(self, values: Mapping[str, Any], batch: Batch) -> None:
        """Accumulate one batch; ``values`` holds the taps of ``inputs``."""

    @abstractmethod
    def solve(self) -> dict[str, float]:
        """Write the solution into the student and return figures about the fit."""


class Student(TapModel):
    """A target adapter's model."""

    @abstractmethod
    def sites(self) -> Mapping[str, Site]:
        """The modules a local stage trains, in the order in which the teacher reaches their inputs."""

    @abstractmethod
    def run_site(self, site: str, inputs: Mapping[str, Any], wanted: Collection[str], batch: Batch) -> dict[str, Any]:
        """Run one site on teacher values; returns the wanted local taps, with gradients if they are enabled."""

    @abstractmethod
    def param_groups(self) -> Mapping[str, list[str]]:
        """Group name -> parameter names in ``module``; a stage says which groups train. Groups may overlap."""

    def no_decay(self) -> Collection[str]:
        """Parameter names that never get weight decay; by default every parameter with fewer than 2 dimensions."""
        return [name for name, p in self.module.named_parameters() if p.ndim < 2]

    def prepare(self, batch: Batch, teacher: Teacher, stage: str, step: int) -> Batch:
        """Change a batch before a global stage uses it (on-policy sampling, mixing); runs without gradients, before
        micro-batches are cut. Default: unchanged."""
        return batch

    def finish(self) -> None:
        """Called once after the last stage: fold helper parameters into weights, merge adapters."""

    def decide(self, decisions: Mapping[str, Any]) -> None:
        """Take in what a stage decided (e.g. which layers are replaced), dropping modules no longer needed."""
        if decisions:
            raise ValueError(f"{type(self).__name__} takes no decisions, got {sorted(decisions)}")

    def facts_as_teacher(self) -> Any:
        """Facts of this model when it is the teacher of another conversion; by default those it was built from."""
        return self.facts

    def shard_units(self) -> Iterable[nn.Module]:
        """Modules that are sharded one by one when the student does not fit one device."""
        return ()
