"""Students whose modules can be trained one by one on the teacher's inputs (local stages, closed-form fits)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from xarch.contracts.batch import Batch
from xarch.contracts.model import Student
from xarch.contracts.tap import Tap


@dataclass(frozen=True)
class Site:
    """A student module that can be trained on its own with the teacher's input at the same place.

    Attributes:
        name: e.g. ``blocks.3``.
        inputs: local name -> teacher tap fed to the site, e.g. ``{"input": "blocks.6.input"}``.
        taps: local name -> the site's own taps, e.g. ``{"output": Tap("blocks.3.output", ...)}``.
        targets: local name -> the teacher tap that it replaces, if not PLACE.LOCAL.
        parameters: prefixes of its parameters in the student's module; by default the site's name.
    """

    name: str
    inputs: Mapping[str, str]
    taps: Mapping[str, Tap] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Its place in the teacher: the common prefix of its inputs' names ("blocks.6"), else its own name."""
        places = {tap.rpartition(".")[0] for tap in self.inputs.values()}
        return places.pop() if len(places) == 1 and "" not in places else self.name

    def counterpart(self, local: str) -> str:
        """Return the teacher tap that ``same`` refers to for one of its taps."""
        return self.targets.get(local, f"{self.place}.{local}")

    def owns(self, parameter: str) -> bool:
        """Return whether a parameter of the student's module belongs to it."""
        return any(parameter == p or parameter.startswith(p + ".") for p in self.parameters or (self.name,))


class Solver(ABC):
    """Closed-form fit of one site: observes the teacher's taps batch by batch, then solves, without gradients."""

    inputs: Collection[str]
    """Teacher taps it needs, by full name."""

    @abstractmethod
    def observe(self, values: Mapping[str, Any], batch: Batch) -> None:
        """Accumulate one batch; ``values`` holds the taps in ``inputs``."""

    @abstractmethod
    def solve(self) -> dict[str, float]:
        """Write the solution into the student and return figures of the fit."""


class LocalStudent(Student):
    """A student with sites."""

    @abstractmethod
    def sites(self) -> Mapping[str, Site]:
        """Return the modules that a local stage trains, in the order in which the teacher produces their inputs."""

    @abstractmethod
    def run_site(self, site: str, inputs: Mapping[str, Any], wanted: Collection[str], batch: Batch) -> dict[str, Any]:
        """Run one site on teacher values; return the requested local taps, with gradients if enabled."""


def sites_of(student: Student) -> Mapping[str, Site]:
    """Return the sites of a student; none unless it is a :class:`LocalStudent`."""
    return student.sites() if isinstance(student, LocalStudent) else {}
