"""A family: what kind of model something is, as an object. Everything that belongs to a kind of model hangs here."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from xarch.contracts.batch import Batch
from xarch.contracts.bench import BenchCase
from xarch.contracts.data import DataInfo
from xarch.contracts.tap import Tap
from xarch.errors import PlanError


@runtime_checkable
class Facts(Protocol):
    """A model of a family described without its weights (a frozen dataclass): what ``describe`` gives, what targets
    build from, what run folders keep."""

    def to_json(self) -> dict[str, Any]:
        """JSON form."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Any:
        """Inverse of :meth:`to_json`."""

    def taps(self) -> Mapping[str, Tap]:
        """Every tap a teacher with these facts has."""

    def tiny(self) -> Any:
        """Facts of the same architecture cut to about two layers and few words; export is tried on it while planning.

        May return ``self`` where the model is small anyway.
        """

    def work(self, sample: Mapping[str, Any]) -> float:
        """Multiply-adds of a forward pass over one budget unit of such a sample."""


class Family(ABC):
    """Registered by ``registry.family(NAME, load=…)``; subclass it in a package that sources, targets, data and
    methods import.

    Class attributes:
        Facts: the facts type, see :class:`Facts`.
        unit: what budgets count, e.g. "token".
        tensors: batch key -> layout that its models read; a key that ends in "?" may be absent.
        mask: batch key that restricts the positions objectives count, unless a match says otherwise; "" for none.
        metric: default metric of its students; "" for none.
        places: what every method may ask of a model of this family -> its name here: "logits"; "hidden" with {} for the
            layer ("blocks.{}.output"); "labels" ("batch:labels"). A match that names a place means this.
        constants: names that ``Teacher.constants`` of this family may have.
        template: "package:folder" of the files that ``xarch new plugin --family NAME`` fills in; "" for none.
    """

    Facts: ClassVar[type[Any]]
    unit: ClassVar[str] = "sample"
    tensors: ClassVar[Mapping[str, str]] = {}
    mask: ClassVar[str] = ""
    metric: ClassVar[str] = ""
    places: ClassVar[Mapping[str, str]] = {}
    constants: ClassVar[Sequence[str]] = ()
    template: ClassVar[str] = ""

    def accepts(self, facts: Any, data: DataInfo) -> str | None:
        """Why a model with these facts cannot read this data (classes, length, channels), or None."""
        return None

    def save_processor(self, processor: Any, folder: Path) -> None:
        """Write a student's tokenizer or image processor into its folder, if it is not the teacher's own.

        Raises:
            PlanError: this family has no processor.
        """
        raise PlanError(f"{type(self).__name__} cannot save the processor {type(processor).__name__}")

    def load_processor(self, folder: Path) -> Any:
        """The processor in a student's folder, or None."""
        return None

    def bench_cases(self, graphs: Sequence[str], folder: Path) -> Iterable[BenchCase]:
        """How the exported graphs of this family are timed; by default only each graph alone on its example inputs,
        which is always measured. ``folder`` holds the graphs; `xarch.graph_metadata` reads what they say."""
        return ()

    def report_sections(self, run: Any) -> Sequence[Any]:
        """Sections of the report of a run whose student is of this family; ``run`` is a ``xarch.report.RunInfo``."""
        return ()

    def generate(self, model: Any, processor: Any, prompt: str, options: Mapping[str, Any]) -> Any:
        """What lets a person look at a result, for ``xarch generate``: text, or the bytes of a PNG picture.

        Args:
            model: a loaded student or teacher (``TapModel``).
            processor: its tokenizer or image processor, None without one.

        Raises:
            PlanError: this family has nothing of the kind.
        """
        raise PlanError(f"{type(self).__name__} has nothing to show with `xarch generate`")

    def example_batch(self, facts: Any, samples: int = 2, seed: int = 0) -> Batch:
        """Random input of a model with these facts, from which all its taps can be computed.

        Raises:
            PlanError: this family makes none, which the conformance kit needs.
        """
        raise PlanError(f"{type(self).__name__} has no example batch, which the conformance kit needs")

    def tiny_teacher(self, folder: Path) -> str:
        """Reference of a small teacher written into ``folder``, for the conformance kit."""
        raise PlanError(f"{type(self).__name__} has no tiny teacher, which the conformance kit needs")

    def tiny_run(self, folder: Path) -> Mapping[str, Any]:
        """Configuration values (dotted keys) of data, samples and batch for a conversion of :meth:`tiny_teacher`."""
        raise PlanError(f"{type(self).__name__} has no tiny run, which the conformance kit needs")
