"""Teacher and student as the engine sees them: models whose taps can be read while they run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.tap import Tap
from xarch.errors import PlanError

Sink = Callable[[str, Any], None]
"""Called with (tap name, value) the moment the value exists, while the model is still running."""


class TapModel(ABC):
    """A model with taps. ``run`` pushes values instead of returning them, so that a value can be used and dropped
    before the next layer runs: memory stays at one layer however deep the model is.

    Attributes:
        module: the real ``nn.Module``.
        family: name of the family contract it fulfils ("decoder", ...).
        facts: the family's description of the architecture, see ``xarch.Facts``.
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

        The caller decides about gradients and about train or eval mode; the model never switches them.
        """

    def work(self, sample: Mapping[str, Any]) -> float:
        """Multiply-adds of a forward pass over one unit of such a sample, for the plan's estimate of time.

        By default one a parameter, as of a token in dense layers.
        """
        return float(sum(p.numel() for p in self.module.parameters()))

    def constants(self) -> Mapping[str, Tensor]:
        """Tensors that objectives may read, e.g. ``classifier.weight``; by default none."""
        return {}

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
class Initialisation:
    """What initialisation does with every tensor of the student, and with those of the teacher it does not read.

    Attributes:
        copied, mapped, new: tensors of the student: taken over as they are, computed from the teacher's, made anew.
        unused: tensors of the teacher that are deliberately not read. If anything is copied or mapped, a teacher's
            tensor that is named nowhere is an error: a conversion must not drop what it does not know.
        sources: student tensor -> teacher tensors it comes from, where their names differ.
    """

    copied: tuple[str, ...] = ()
    mapped: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    sources: Mapping[str, tuple[str, ...]] | None = None


class Student(TapModel):
    """A target adapter's model."""

    @abstractmethod
    def param_groups(self) -> Mapping[str, list[str]]:
        """Group name -> parameter names in ``module``; a stage says which groups train. Groups may overlap."""

    def no_decay(self) -> Collection[str]:
        """Parameter names that never get weight decay; by default every parameter with fewer than 2 dimensions."""
        return [name for name, p in self.module.named_parameters() if p.ndim < 2]

    def layer_map(self) -> Mapping[int, int]:
        """Student layer -> the teacher layer it stands for, counted as in tap names; empty: same depth, same numbers.

        ``same``, ``{i}`` with ``map: target`` and the report follow it.
        """
        return {}

    def counterparts(self) -> Mapping[str, str]:
        """Student tap -> teacher tap that ``same`` means, where :meth:`layer_map` and equal names do not say it."""
        return {}

    @property
    def couples_batch(self) -> bool:
        """Whether a sample's values depend on the other samples while it trains; by default whether a module keeps
        running statistics. Such a student's batches are never cut silently."""
        return any(getattr(m, "track_running_stats", False) for m in self.module.modules())

    def variants(self) -> Mapping[str, TapModel]:
        """Operating points besides the student itself (a budget, a head): each is evaluated and may be gated."""
        return {}

    def finish(self) -> None:
        """Called once after the last stage: fold helper parameters into weights, merge adapters."""

    def decide(self, decisions: Mapping[str, Any]) -> None:
        """Take in what a stage decided (e.g. which layers are replaced), dropping modules no longer needed."""
        if decisions:
            raise ValueError(f"{type(self).__name__} takes no decisions, got {sorted(decisions)}")

    def facts_as_teacher(self) -> Any:
        """Facts of this model when it is the teacher of another conversion; by default those it was built from."""
        return self.facts

    def as_teacher(self, ref: str, fingerprint: str, processor: Any) -> Teacher:
        """This student as the teacher of another conversion (``run:DIR``).

        Raises:
            PlanError: a student of this kind cannot be one, with the reason.
        """
        raise PlanError(f"students of {type(self).__name__} cannot be teachers")

    def shard_units(self) -> Iterable[nn.Module]:
        """Modules that are sharded one by one when the student does not fit one device."""
        return ()
