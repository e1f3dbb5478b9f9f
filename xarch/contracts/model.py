"""Teacher and student as seen by the engine: models whose taps can be read during a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.replaceable import Replaceable
from xarch.contracts.tap import Tap
from xarch.errors import PlanError

if TYPE_CHECKING:
    from xarch.contracts.stage import StageOutcome

Sink = Callable[[str, Any], None]
"""Called with (tap name, value) as soon as the value exists, while the model is still running."""


class TapModel(ABC):
    """A model with taps. ``run`` pushes values instead of returning them, so that a value can be used and released
    before the next layer runs: memory stays at one layer regardless of depth.

    Attributes:
        module: the underlying ``nn.Module``.
        family: name of its family ("decoder", ...).
        facts: the family's description of the architecture, see ``xarch.Facts``.
    """

    module: nn.Module
    family: str
    facts: Any

    spends: ClassVar[Collection[str]] = ()
    """Names of the figures that :meth:`spent` returns; without them the plan refuses a gate on one."""

    @abstractmethod
    def taps(self) -> Mapping[str, Tap]:
        """Return every tap by name, in execution order."""

    @abstractmethod
    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Run on ``batch`` and push each requested tap into ``sink``; may stop after the last requested one.

        The caller controls gradients and train or eval mode; the model never changes them.
        """

    def work(self, sample: Mapping[str, Any]) -> float:
        """Return the multiply-adds of a forward pass per budget unit of such a sample, for the plan's time estimate. By
        default one per parameter, as for a token in dense layers.
        """
        return float(sum(p.numel() for p in self.module.parameters()))

    def constants(self) -> Mapping[str, Tensor]:
        """Return tensors that objectives may read, e.g. ``classifier.weight``; by default none."""
        return {}

    def packed(self, name: str, value: Any) -> Any:
        """Return what a cache stores of a tap's value, one tensor [B, ...]; by default the value itself.

        A structured value whose tap declares ``info["elements"]`` is stored by the tensor that this returns, and made
        again by :meth:`unpacked`, bit for bit.
        """
        return value

    def unpacked(self, name: str, stored: Tensor) -> Any:
        """Return the value of a tap from the tensor of :meth:`packed`."""
        return stored

    def spent(self) -> Mapping[str, float]:
        """Return what the model counted of its own forward passes since the last call, and count anew: name -> a share
        of some whole, e.g. of the multiply-adds that all its parts would take. Less is better. An evaluation shows it
        beside the figures of its metric; by default nothing.
        """
        return {}

    def collect(self, batch: Batch, wanted: Collection[str]) -> dict[str, Any]:
        """Run and return all requested values together."""
        values: dict[str, Any] = {}
        self.run(batch, wanted, values.__setitem__)
        return values


class Teacher(TapModel):
    """Model loaded by a source adapter: in eval mode, without gradients, never modified."""

    ref: str
    fingerprint: str
    """sha256 over the weights; identifies the teacher in caches and manifests."""

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """Return canonical name (defined by the family) -> tensor; lazy views, no copies."""

    def processor(self) -> Any:
        """Return the tokenizer or image processor that belongs to the weights, or None."""
        return None

    def save_processor(self, folder: str) -> None:
        """Write the processor's files into ``folder``, so that the student can be used on its own."""


class LoadedTeacher(Teacher):
    """A teacher that is a module, which it owns: frozen, in eval mode, its tensors under their own names.

    Args:
        facts: what the family knows of it.
        ref: its reference, e.g. ``run:DIR``.
        fingerprint: SHA-256 of its weights.
        processor: tokenizer or the like that belongs to it, with ``save_pretrained``; None if there is none.
    """

    def __init__(self, module: nn.Module, facts: Any, *, ref: str, fingerprint: str, processor: Any = None) -> None:
        self.module, self.facts = module.eval().requires_grad_(False), facts
        self.ref, self.fingerprint, self._processor = ref, fingerprint, processor

    def weights(self) -> Mapping[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.module.state_dict().items()}

    def processor(self) -> Any:
        return self._processor

    def save_processor(self, folder: str) -> None:
        if self._processor is not None:
            self._processor.save_pretrained(folder)


@dataclass(frozen=True)
class Initialisation:
    """How every student tensor is initialised, and which teacher tensors are not read.

    Attributes:
        copied, mapped, new: student tensors copied unchanged, computed from the teacher's, or newly initialised.
        own: student tensors that start from weights of its own; the plan moves them here from ``new``, see
            ``TargetAdapter.own_weights``.
        unused: teacher tensors that are deliberately not read. If anything is copied or mapped, a teacher tensor listed
            nowhere is an error: a conversion must not silently drop tensors it does not know.
        sources: student tensor -> teacher tensors it is made from, where the names differ.
    """

    copied: tuple[str, ...] = ()
    mapped: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    sources: Mapping[str, tuple[str, ...]] | None = None
    own: tuple[str, ...] = ()


class Student(TapModel):
    """Model built by a target adapter."""

    @abstractmethod
    def param_groups(self) -> Mapping[str, list[str]]:
        """Return group name -> parameter names in ``module``; each stage selects the groups it trains. Groups may
        overlap."""

    def no_decay(self) -> Collection[str]:
        """Return the names of parameters without weight decay; by default all with fewer than 2 dimensions."""
        return [name for name, p in self.module.named_parameters() if p.ndim < 2]

    def layer_map(self) -> Mapping[int, int]:
        """Return student layer -> the teacher layer it replaces, numbered as in tap names; empty: same depth, same
        numbers.

        ``same``, ``{i}`` with ``map: target`` and the report use it.
        """
        return {}

    def counterparts(self) -> Mapping[str, str]:
        """Return student tap -> teacher tap for ``same``, where :meth:`layer_map` and equal names do not determine
        it."""
        return {}

    @property
    def couples_batch(self) -> bool:
        """Return whether a sample's values depend on the other samples in train mode; by default whether a module keeps
        running statistics or normalises over the batch. Batches of such a student are never split silently."""
        kinds = (nn.modules.batchnorm._BatchNorm,)
        return any(getattr(m, "track_running_stats", False) or isinstance(m, kinds) for m in self.module.modules())

    def traits(self) -> Mapping[str, str]:
        """Return what the plan says of this student besides its size, name -> words, e.g. the memory that it needs to
        run; known from the architecture alone. By default nothing."""
        return {}

    def variants(self) -> Mapping[str, TapModel]:
        """Return operating points besides the student itself (a budget, a head); each is evaluated and may be gated."""
        return {}

    def begin(self, stage: str, options: Mapping[str, Any]) -> None:
        """Prepare for a stage: switch on what only this stage uses (sampled gates, a temperature).

        Called before every stage that runs, also when it resumes, and in the same order when a finished stage is
        restored. Before the first stage and after :meth:`end` a student computes what it would compute if it were
        saved now, so that figures before, between and after stages are those of the model. Tensors stay as they are:
        checkpoints restore them.

        Args:
            stage: its name in the configuration.
            options: its ``options`` there.
        """

    def end(self, outcome: StageOutcome) -> None:
        """Undo :meth:`begin`, once the stage has left its final weights and before its decisions are applied."""

    def finish(self) -> None:
        """Fold helper parameters into weights and merge adapters; called once after the last stage."""

    def decide(self, decisions: Mapping[str, Any]) -> None:
        """Apply the decisions of a stage (e.g. which layers are replaced) and drop modules no longer needed."""
        if decisions:
            raise ValueError(f"{type(self).__name__} does not support decisions, got {sorted(decisions)}")

    def facts_as_teacher(self) -> Any:
        """Return the facts of this model as the teacher of another conversion; by default those it was built from."""
        return self.facts

    def as_teacher(self, ref: str, fingerprint: str, processor: Any) -> Teacher:
        """Return this student as the teacher of another conversion (``run:DIR``).

        Raises:
            PlanError: this student cannot be a teacher, with the reason.
        """
        raise PlanError(f"students of {type(self).__name__} cannot be teachers")

    def replaceable(self) -> Sequence[Replaceable]:
        """Return the modules that other targets may replace (see :func:`xarch.rebuilder`), in the order in which they
        run; by default none."""
        return ()

    def shard_units(self) -> Iterable[nn.Module]:
        """Return the modules to shard one by one when the student does not fit on one device."""
        return ()
