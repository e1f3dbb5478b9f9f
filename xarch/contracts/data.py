"""Where batches come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from xarch.contracts.adapters import Options
from xarch.contracts.batch import Batch


@dataclass(frozen=True)
class DataInfo:
    """A data set described before it is read.

    Attributes:
        title: what it is, for the plan and the report.
        digest: identity of the content as far as it is known without reading all of it (names, sizes, times).
        unit: what is counted: "token", "image", "ray".
        size: files, bytes, samples, whatever is known.
    """

    title: str
    digest: str
    unit: str
    size: dict[str, Any] = field(default_factory=dict)


class BatchStream(ABC, Iterator[Batch]):
    """Endless (train) or finite (heldout) batches whose position can be saved and restored exactly.

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
            losses: the loss of each of its samples, by student tap, unweighted, float32 on the CPU; the same in every
                process. What is made of them belongs to the position.
        """

    def facts(self) -> dict[str, Any]:
        """Facts objectives may need, e.g. class counts."""
        return {}

    def counters(self) -> dict[str, int]:
        """Samples read, skipped and why, so far (``{"read": 10, "skipped_empty": 1}``)."""
        return {}


class DataProvider(ABC):
    """Opens data of one scheme (``text:``, ``images:``, ...)."""

    Options: type[BaseModel] = Options

    @abstractmethod
    def describe(self, ref: str, options: BaseModel) -> DataInfo:
        """Describe without reading the content.

        Raises:
            UsageError: nothing is there, or it is not readable.
        """

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        """Budget units of one sample, e.g. its length in tokens; 1 by default (an image)."""
        return 1

    @abstractmethod
    def open(
        self,
        ref: str,
        options: BaseModel,
        *,
        split: str,
        samples: int,
        sample: Mapping[str, Any],
        processors: Mapping[str, Any],
        seed: int,
        teacher: Any = None,
    ) -> BatchStream:
        """Batches of ``samples`` samples.

        Args:
            split: "train" (endless, shuffled by ``seed``), "validation" (finite, fixed order, for decisions during
                training) or "heldout" (finite, fixed order, for the final figures). The three never overlap.
            sample: what one sample is, e.g. ``{"length": 512}``.
            processors: "teacher" and "student" -> tokenizer or image processor (often the same object).
            teacher: the teacher, for data drawn from it (a radiance field's occupied rays).
        """
