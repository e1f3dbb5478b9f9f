"""A family of small convolutional classifiers for tests of plans: a global student, labels, views, exits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from xarch import (
    BatchStep,
    DataInfo,
    DataProvider,
    Family,
    Initialisation,
    Objective,
    Options,
    SourceAdapter,
    SourceInfo,
    StageKind,
    StageOutcome,
    Student,
    Tap,
    TargetAdapter,
    TensorInfo,
    hookimpl,
)


@dataclass(frozen=True)
class ConvFacts:
    """Width, depth and classes; pictures are 3 × 28 × 28."""

    layers: int = 4
    width: int = 16
    classes: int = 10

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ConvFacts:
        return cls(**data)

    def taps(self) -> dict[str, Tap]:
        shape = {"C": self.width, "H": 28, "W": 28}
        taps = [Tap(f"features.{i}", "feature", "BCHW", shape) for i in range(self.layers)]
        return {t.name: t for t in [*taps, Tap("logits", "logits", "BK", {"K": self.classes})]}

    def tiny(self) -> ConvFacts:
        return self

    def work(self, sample: Mapping[str, Any]) -> float:
        return 28.0 * 28 * 9 * self.width * (3 + (self.layers - 1) * self.width)


class ConvFamily(Family):
    Facts = ConvFacts
    unit = "image"
    tensors: ClassVar = {"images": "BCHW"}


class Net(nn.Module):
    def __init__(self, facts: ConvFacts, norm: bool) -> None:
        super().__init__()
        widths = [3, *[facts.width] * facts.layers]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) if norm else nn.Identity() for b in widths[1:])
        self.head = nn.Linear(facts.width, facts.classes)


class ConvStudent(Student):
    family = "conv"

    def __init__(self, facts: ConvFacts, norm: bool, device: torch.device) -> None:
        self.facts = facts
        with device:
            self.module = Net(facts, norm)

    def taps(self) -> dict[str, Tap]:
        return self.facts.taps()

    def run(self, batch: Any, wanted: Any, sink: Any) -> None:
        x = batch["images"]
        for i, (conv, norm) in enumerate(zip(self.module.convs, self.module.norms, strict=True)):
            x = torch.relu(norm(conv(x)))
            if f"features.{i}" in wanted:
                sink(f"features.{i}", x)
        if "logits" in wanted:
            sink("logits", self.module.head(x.mean((2, 3))))

    def work(self, sample: Mapping[str, Any]) -> float:
        return self.facts.work(sample)

    def param_groups(self) -> dict[str, list[str]]:
        names = [n for n, _ in self.module.named_parameters()]
        return {"all": names, "head": [n for n in names if n.startswith("head")]}


class ConvSource(SourceAdapter):
    def tiny(self, options: Any) -> Any:
        return options

    def describe(self, ref: str, options: Any) -> SourceInfo:
        layers, classes = (int(part) for part in ref.split("x"))
        facts = ConvFacts(layers=layers, classes=classes)
        return SourceInfo("conv", facts, 10_000, 40_000, f"conv {ref}")

    def load(self, ref: str, options: Any, *, device: Any, dtype: Any) -> Any:
        raise AssertionError("a plan loads no weights")


class ConvOptions(Options):
    layers: int = 4
    norm: bool = False


class ConvTarget(TargetAdapter):
    Options = ConvOptions

    def build(self, facts: Any, options: Any, decisions: Any, *, device: torch.device) -> Student:
        return ConvStudent(ConvFacts(options.layers, facts.width, facts.classes), options.norm, device)

    def facts_from_data(self, data: DataInfo, options: Any) -> ConvFacts:
        return ConvFacts(options.layers, classes=data.facts["classes"])

    def initialisation(self, facts: Any, student: Student) -> Initialisation:
        return Initialisation(new=tuple(student.module.state_dict()))

    def export_graphs(self, student: Any, profile: Any, options: Any) -> list[Any]:
        return []


class Pictures(DataProvider):
    def describe(self, request: Any) -> DataInfo:
        tensors = {"images": TensorInfo("BCHW", {"C": 3, "H": 28, "W": 28}), "labels": TensorInfo("B")}
        return DataInfo(
            "pictures", "pictures", "image", tensors=tensors, facts={"classes": 10, "samples": {"train": 1000}}
        )

    def open(self, request: Any) -> Any:
        raise AssertionError("a plan reads no data")


class SoftLabels(BatchStep):
    """Labels become probabilities."""

    def reads(self) -> Mapping[str, str]:
        return {"labels": "B"}

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"soft": TensorInfo("BK", {"K": self.data["classes"]})}

    def work(self, sample: Mapping[str, Any], *, student: float, teacher: float) -> float:
        return 10 * student

    def __call__(self, batch: Any, context: Any) -> Any:
        raise AssertionError("a plan runs no batch")


class Coupled(Objective):
    """Compares the samples of a batch."""

    accepts = frozenset({("BK", "BK")})
    couples = "batch"

    def forward(self, student: Any, teacher: Any, batch: Any, *, mask: Any = None, **aux: Any) -> Any:
        return (student @ student.T - teacher @ teacher.T).square().mean(1)


class Untraceable(Objective):
    """Looks at a number, which tensors of the meta device do not have."""

    accepts = frozenset({("BK", "BK")})

    def forward(self, student: Any, teacher: Any, batch: Any, *, mask: Any = None, **aux: Any) -> Any:
        return (student - teacher).square().mean(1) * float(student.sum())


class CountOptions(Options):
    count: int = 3


class Counting(StageKind):
    """Reads so many samples, trains nothing."""

    Options = CountOptions

    def units(self, request: Any) -> int:
        return int(request.options.count * request.units_per_sample)

    def run(self, context: Any) -> StageOutcome:
        return StageOutcome()


@hookimpl
def xarch_register(registry: Any) -> None:
    me = __name__
    registry.family("conv", load=f"{me}:ConvFamily", summary="small classifiers")
    registry.source("conv", load=f"{me}:ConvSource", summary="a classifier", produces="conv")
    registry.target("conv", load=f"{me}:ConvTarget", summary="a classifier", accepts=["conv"], produces="conv")
    registry.data("pictures", load=f"{me}:Pictures", summary="pictures")
    registry.batch_step("soft-labels", load=f"{me}:SoftLabels", summary="labels as probabilities")
    registry.objective("coupled", load=f"{me}:Coupled", summary="compares samples")
    registry.objective("untraceable", load=f"{me}:Untraceable", summary="reads a number")
    registry.stage("counting", load=f"{me}:Counting", summary="reads some samples")
