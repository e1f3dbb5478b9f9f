"""Family: one kind of model, and everything specific to it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel

from xarch.contracts.batch import Batch
from xarch.contracts.bench import BenchCase
from xarch.contracts.control import Control
from xarch.contracts.data import DataInfo
from xarch.contracts.export import Runner
from xarch.contracts.options import Options
from xarch.contracts.tap import Tap
from xarch.errors import PlanError


@runtime_checkable
class Facts(Protocol):
    """Description of a model of a family without its weights (a frozen dataclass): returned by ``describe``, used by
    targets to build students, and stored in run folders."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Any:
        """Restore the result of :meth:`to_json`."""

    def taps(self) -> Mapping[str, Tap]:
        """Return every tap of a teacher with these facts."""

    def tiny(self) -> Any:
        """Return facts of the same architecture cut to about two layers and a small vocabulary; planning tries the
        export on it. May return ``self`` if the model is small anyway.
        """

    def work(self, sample: Mapping[str, Any]) -> float:
        """Return the multiply-adds of a forward pass per budget unit of such a sample."""


class Family(ABC):
    """Base of families, registered with ``registry.family(NAME, load=…)``; subclass it in a package that sources,
    targets, data and methods import.

    Class attributes:
        Facts: the facts type, see :class:`Facts`.
        unit: what budgets count, e.g. "token".
        tensors: batch key -> layout of the tensors its models read; a key ending in "?" is optional.
        mask: batch key of the default mask over the positions that objectives count; "" for none.
        metric: default metric for its students; "" for none.
        places: family-independent name -> name in this family, for use in matches: "logits"; "hidden" with {} for the
            layer ("blocks.{}.output"); "labels" ("batch:labels").
        training: what a method's global gradient stages leave open, for students of this family: dotted key below the
            stage -> value, e.g. ``{"epochs": 40, "batch.size": 100, "optimiser.lr": 2e-3}``. A method then says what is
            matched, and serves families of other sizes. ``optimiser.options`` are for the ``optimiser.algorithm``
            given here; stages that choose another do without. By default the whole budget is read in small batches.
        evaluation: what a run leaves open of its evaluation, for students of this family: dotted key below ``evaluate``
            -> value, e.g. ``{"batch": 100}``. By default the core's few samples in small batches.
        constants: names that ``Teacher.constants`` may return in this family.
        GenerateOptions: options of :meth:`generate`, given by ``xarch generate --set``.
        bench_calls: calls of a graph in one run of each of :meth:`bench_cases`; the plan counts their time.
        hub_task: its task as the Hugging Face hub calls it, e.g. "text-generation"; "" if it knows none.
        template: "package:folder" of the files that ``xarch new plugin --family NAME`` fills in; "" for none.
    """

    Facts: ClassVar[type[Any]]
    unit: ClassVar[str] = "sample"
    tensors: ClassVar[Mapping[str, str]] = {}
    mask: ClassVar[str] = ""
    metric: ClassVar[str] = ""
    places: ClassVar[Mapping[str, str]] = {}
    training: ClassVar[Mapping[str, Any]] = {
        "share": 1.0,
        "batch.size": 4,
        "optimiser.lr": 3.0e-4,
        "optimiser.schedule": "cosine",
    }
    evaluation: ClassVar[Mapping[str, Any]] = {}
    constants: ClassVar[Sequence[str]] = ()
    GenerateOptions: ClassVar[type[BaseModel]] = Options
    bench_calls: ClassVar[Sequence[int]] = ()
    hub_task: ClassVar[str] = ""
    template: ClassVar[str] = ""

    def accepts(self, facts: Any, data: DataInfo) -> str | None:
        """Return why a model with these facts cannot read this data (classes, length, channels), or None."""
        return None

    def training_on(self, data: DataInfo) -> Mapping[str, Any]:
        """Return :attr:`training` for this data, e.g. more epochs for a small data set."""
        return self.training

    def evaluation_on(self, data: DataInfo) -> Mapping[str, Any]:
        """Return :attr:`evaluation` for this data, e.g. no more samples than it holds out."""
        return self.evaluation

    def save_processor(self, processor: Any, folder: Path) -> None:
        """Write a student's tokenizer or image processor into its folder, unless it is the teacher's.

        Raises:
            PlanError: this family has no processor.
        """
        raise PlanError(f"{type(self).__name__} cannot save the processor {type(processor).__name__}")

    def load_processor(self, folder: Path) -> Any:
        """Return the processor in a student's folder, or None."""
        return None

    def runner(self, graphs: Sequence[str], student: Path) -> Runner | None:
        """Return the program that runs these graphs on a device, copied into every export; by default none.

        Args:
            graphs: names of the exported graphs.
            student: folder of the saved student, with its processor's files.
        """
        return None

    def bench_cases(self, graphs: Sequence[str], folder: Path) -> Iterable[BenchCase]:
        """Return benchmark cases for exported graphs of this family, besides each graph alone on its example inputs,
        which is always measured. ``folder`` holds the graphs; `xarch.graph_metadata` reads their metadata."""
        return ()

    def report_sections(self, run: Any) -> Sequence[Any]:
        """Return report sections for a run whose student is of this family; ``run`` is a ``xarch.report.RunInfo``."""
        return ()

    def controls(self, teacher: Any, student: Any) -> Mapping[str, Control]:
        """Return what a student must beat, by name: the teacher cut to its budget without training. By default
        none. Names state the precision of what is kept; controls are built anew for every evaluation.

        Args:
            teacher, student: of this family; the student as it is evaluated.
        """
        return {}

    def control_names(self, student: Any) -> Collection[str]:
        """Return the names of :meth:`controls`, from the student's architecture alone: the plan counts their
        evaluation. A teacher that cannot be cut may have fewer."""
        return ()

    def generate(self, model: Any, processor: Any, prompt: str, options: Any) -> Any:
        """Return a sample output to look at, for ``xarch generate``: text, an iterator of its pieces, one for each unit
        (a token) as it is made and one for the prompt before them, or the bytes of a PNG image.

        Args:
            model: a loaded student or teacher (``TapModel``).
            processor: its tokenizer or image processor, None without one.
            options: validated ``GenerateOptions``.

        Raises:
            PlanError: this family does not support it.
        """
        raise PlanError(f"{type(self).__name__} does not support `xarch generate`")

    def example_batch(self, facts: Any, samples: int = 2, seed: int = 0) -> Batch:
        """Return a random input for a model with these facts, from which all its taps can be computed.

        Raises:
            PlanError: this family provides none; the conformance kit requires it.
        """
        raise PlanError(f"{type(self).__name__} has no example batch; the conformance kit requires one")

    def tiny_teacher(self, folder: Path) -> str:
        """Write a small teacher into ``folder`` and return its reference, for the conformance kit."""
        raise PlanError(f"{type(self).__name__} has no tiny teacher; the conformance kit requires one")

    def tiny_run(self, folder: Path) -> Mapping[str, Any]:
        """Return configuration values (dotted keys) of data, samples and batch for a conversion of
        :meth:`tiny_teacher`."""
        raise PlanError(f"{type(self).__name__} has no tiny run; the conformance kit requires one")
