"""Where batches come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.options import Options

Split = Literal["train", "validation", "calibration", "heldout"]
"""train: endless, shuffled. validation: decisions during training. calibration: 8-bit ranges, tables.
heldout: final figures. The four never overlap; all but train are finite and in a fixed order."""


@dataclass(frozen=True)
class TensorInfo:
    """Declaration of a batch tensor.

    Attributes:
        layout: one letter per dimension, the first being samples ("BL", "BCHW", "B").
        shape: letter -> size, where the data determine it (``{"C": 3, "H": 28, "W": 28}``).
        dtype: name of the torch dtype; by default integer for layouts of samples and positions only (B, L, T), such as
            labels and token ids, else float32.
    """

    layout: str
    shape: Mapping[str, int] = field(default_factory=dict)
    dtype: str = ""


@dataclass(frozen=True)
class DataInfo:
    """Description of a data set before it is read.

    Attributes:
        title: short description for the plan and the report.
        digest: identity of the content, as far as known without reading all of it (names, sizes, times).
        unit: budget unit: "token", "image", "ray".
        size: files, bytes, samples or whatever is known, for display.
        tensors: batch key -> :class:`TensorInfo`, including views (``NAME@teacher``). The plan checks keys and layouts.
        facts: facts for objectives, batch steps and the plan: ``classes``, ``class_counts`` (a list), ``samples``
            ({split: number}), ``length`` (longest sample), ``heldout_units`` (budget units in a held-out sample, where
            it is more than a training one: a whole picture), ``indices`` (number of distinct values of the tensor
            ``index``) and any others.
        warnings: warnings to show in the plan, e.g. about skipped files.
        processor_hint: what to do where the teacher has no tokenizer or image processor, if batches cannot be made
            without one; "" if they can.
    """

    title: str
    digest: str
    unit: str
    size: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    processor_hint: str = ""


@dataclass(frozen=True)
class DataRequest:
    """Arguments of a data provider, as one object so that new fields break no provider.

    Attributes:
        ref: the reference after the scheme.
        options: validated by the provider's ``Options``.
        split: part of the data.
        samples: samples per batch.
        sample: form of one sample as configured, e.g. ``{"length": 512}``; checked with the provider's ``Sample``.
        processors: "teacher", "student" and names of further teachers -> tokenizer or image processor (often the same
            object), None without one.
        seed: seed of the order and of every augmentation.
        teacher: the loaded teacher, for data sampled from it; None while planning or without a teacher.
        facts: the teacher's facts, also available while planning; None without a teacher.
        workers: number of worker processes that prepare samples; 0 prepares them in this process.
        provider: opens another provider: ``provider("text:corpus.txt", {…})`` returns an :class:`OpenedData`.
    """

    ref: str
    options: Any
    split: Split = "train"
    samples: int = 1
    sample: Mapping[str, Any] = field(default_factory=dict)
    processors: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    teacher: Any = None
    facts: Any = None
    workers: int = 0
    provider: Callable[[str, Mapping[str, Any]], OpenedData] | None = None


class BatchStream(ABC, Iterator[Batch]):
    """Endless (train) or finite stream of batches whose position can be saved and restored exactly.

    Attributes:
        watches_losses: whether later batches depend on the student's losses, see :meth:`take_losses`.
    """

    watches_losses: bool = False

    def __iter__(self) -> BatchStream:
        return self

    @abstractmethod
    def __next__(self) -> Batch: ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the position; restoring it reproduces the next batch. JSON values, and tensors at the top level."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def take_losses(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Receive the losses after every optimiser step of a global stage if ``watches_losses``, before the next batch
        is drawn.

        Args:
            batch: the whole batch of the step.
            losses: match name -> unweighted loss of each sample, float32 on the CPU; the same on every rank. State
                derived from them is part of the position.
        """

    def counters(self) -> dict[str, int]:
        """Return how many samples were read, and skipped by reason, so far (``{"read": 10, "skipped_empty": 1}``)."""
        return {}

    def close(self) -> None:
        """Stop worker processes, if any."""


class DataProvider(ABC):
    """Opens data of one scheme (``text:``, ``images:``, ...).

    Class attributes:
        Options: options of the data (``data.options``).
        Sample: form of one sample (``data.sample``, ``stages.NAME.sample``, ``evaluate.sample``); every key has a
            default. By default samples have no form to choose, so every key is an error.
    """

    Options: ClassVar[type[BaseModel]] = Options
    Sample: ClassVar[type[BaseModel]] = Options

    @abstractmethod
    def describe(self, request: DataRequest) -> DataInfo:
        """Describe the data without reading the content; only ref, options, sample, facts and provider of the request
        are set.

        Raises:
            UsageError: the data do not exist or cannot be read.
        """

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        """Return the budget units of one sample, e.g. its length in tokens; 1 by default (an image)."""
        return 1

    def sizes(self, sample: Mapping[str, Any]) -> Mapping[str, int]:
        """Return the sizes of free dimensions of such a sample, e.g. ``{"L": 512}``, for the plan's memory and cache
        estimates."""
        return {}

    @abstractmethod
    def open(self, request: DataRequest) -> BatchStream:
        """Open a stream of batches of ``request.samples`` samples of ``request.split``."""


@dataclass(frozen=True)
class OpenedData:
    """A provider with its reference and validated options, for providers that build on another one."""

    adapter: DataProvider
    request: DataRequest

    def describe(self) -> DataInfo:
        """Describe the data."""
        return self.adapter.describe(self.request)

    def open(self, **changes: Any) -> BatchStream:
        """Open a stream; ``changes`` are fields of :class:`DataRequest`, e.g. ``split="train", samples=8``."""
        return self.adapter.open(replace(self.request, **changes))
