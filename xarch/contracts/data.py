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
"""train: endless, shuffled. validation: decisions during training. calibration: ranges of 8-bit numbers, tables.
heldout: the final figures. The four never overlap; all but train are finite and in a fixed order."""


@dataclass(frozen=True)
class TensorInfo:
    """Declaration of a tensor of a batch.

    Attributes:
        layout: one letter a dimension, the first counts samples ("BL", "BCHW", "B").
        shape: letter -> size where the data fix it (``{"C": 3, "H": 28, "W": 28}``).
        dtype: its type by torch's name; by default integers for a layout of samples and positions only (B, L, T), as
            of labels and token numbers, else float32.
    """

    layout: str
    shape: Mapping[str, int] = field(default_factory=dict)
    dtype: str = ""


@dataclass(frozen=True)
class DataInfo:
    """A data set described before it is read.

    Attributes:
        title: what it is, for the plan and the report.
        digest: identity of the content as far as it is known without reading all of it (names, sizes, times).
        unit: what is counted: "token", "image", "ray".
        size: files, bytes, samples, whatever is known, for people.
        tensors: batch key -> :class:`TensorInfo`, views (``NAME@teacher``) included. The plan proves keys and layouts.
        facts: what objectives, batch steps and the plan may use: ``classes``, ``class_counts`` (a list), ``samples``
            ({split: number}), ``length`` (longest sample) and any other.
        warnings: what a person should know before a run, such as files that are passed over; shown in the plan.
    """

    title: str
    digest: str
    unit: str
    size: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataRequest:
    """What is asked of a data provider; one object, so that later fields break no provider.

    Attributes:
        ref: what follows the scheme.
        options: validated by the provider's ``Options``.
        split: which part of the data.
        samples: samples of a batch.
        sample: what one sample is, e.g. ``{"length": 512}``.
        processors: "teacher" and "student" -> tokenizer or image processor (often the same object), None without one.
        seed: of the order and of every augmentation.
        teacher: the loaded teacher, for data that are drawn from it; None while planning or without a teacher.
        facts: the teacher's facts, known while planning too; None without a teacher.
        workers: processes that may prepare samples; 0 works in this process.
        provider: opens another provider: ``provider("text:corpus.txt", {…})`` gives an :class:`OpenedData`.
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
    """Endless (train) or finite batches whose position can be saved and restored exactly.

    Attributes:
        watches_losses: whether what comes next depends on how well the student does, see :meth:`take_losses`.
    """

    watches_losses: bool = False

    def __iter__(self) -> BatchStream:
        return self

    @abstractmethod
    def __next__(self) -> Batch: ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Position: restoring it makes the next batch the same one. JSON-able values, and tensors at the top level."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def take_losses(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Called after every optimiser step of a global stage if ``watches_losses``, before the next batch is drawn.

        Args:
            batch: the whole batch of the step.
            losses: match name -> loss of each of its samples, unweighted, float32 on the CPU; the same in every
                process. What is made of them belongs to the position.
        """

    def counters(self) -> dict[str, int]:
        """Samples read, skipped and why, so far (``{"read": 10, "skipped_empty": 1}``)."""
        return {}

    def close(self) -> None:
        """Ends worker processes, if there are any."""


class DataProvider(ABC):
    """Opens data of one scheme (``text:``, ``images:``, ...)."""

    Options: ClassVar[type[BaseModel]] = Options

    @abstractmethod
    def describe(self, request: DataRequest) -> DataInfo:
        """Describe without reading the content; of the request, ref, options, sample, facts and provider are set.

        Raises:
            UsageError: nothing is there, or it is not readable.
        """

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        """Budget units of one sample, e.g. its length in tokens; 1 by default (an image)."""
        return 1

    def sizes(self, sample: Mapping[str, Any]) -> Mapping[str, int]:
        """Sizes of free dimensions of such a sample, e.g. ``{"L": 512}``, for the plan's memory and cache."""
        return {}

    @abstractmethod
    def open(self, request: DataRequest) -> BatchStream:
        """Batches of ``request.samples`` samples of ``request.split``."""


@dataclass(frozen=True)
class OpenedData:
    """A provider with its reference and validated options: what a provider that builds on another one gets."""

    adapter: DataProvider
    request: DataRequest

    def describe(self) -> DataInfo:
        """Describe it."""
        return self.adapter.describe(self.request)

    def open(self, **changes: Any) -> BatchStream:
        """Open it; ``changes`` are fields of :class:`DataRequest`, e.g. ``split="train", samples=8``."""
        return self.adapter.open(replace(self.request, **changes))
