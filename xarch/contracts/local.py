"""Students whose modules can be trained one by one on the teacher's own inputs (local stages, closed forms)."""

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
    """One student module that can be trained alone on the teacher's own input at that place.

    Attributes:
        name: e.g. ``blocks.3``.
        inputs: local name -> teacher tap fed into the site, e.g. ``{"input": "blocks.6.input"}``.
        taps: local name -> the site's own taps, e.g. ``{"output": Tap("blocks.3.output", ...)}``.
        targets: local name -> the teacher tap it stands for, where it is not PLACE.LOCAL.
        parameters: prefixes of its parameters in the student's module; by default its own name.
    """

    name: str
    inputs: Mapping[str, str]
    taps: Mapping[str, Tap] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where it stands in the teacher: what its inputs' names have in common ("blocks.6"), else its own name."""
        places = {tap.rpartition(".")[0] for tap in self.inputs.values()}
        return places.pop() if len(places) == 1 and "" not in places else self.name

    def counterpart(self, local: str) -> str:
        """The teacher tap that ``same`` means for one of its taps."""
        return self.targets.get(local, f"{self.place}.{local}")

    def owns(self, parameter: str) -> bool:
        """Whether a parameter of the student's module belongs to it."""
        return any(parameter == p or parameter.startswith(p + ".") for p in self.parameters or (self.name,))


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


class LocalStudent(Student):
    """A student with sites."""

    @abstractmethod
    def sites(self) -> Mapping[str, Site]:
        """The modules a local stage trains, in the order in which the teacher reaches their inputs."""

    @abstractmethod
    def run_site(self, site: str, inputs: Mapping[str, Any], wanted: Collection[str], batch: Batch) -> dict[str, Any]:
        """Run one site on teacher values; returns the wanted local taps, with gradients if they are enabled."""


def sites_of(student: Student) -> Mapping[str, Site]:
    """The sites of a student; none unless it is a :class:`LocalStudent`."""
    return student.sites() if isinstance(student, LocalStudent) else {}
