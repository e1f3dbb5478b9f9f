"""What comes with xarch passes the kit that plugins are measured by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import pytest
import torch

from xarch import Batch, Tap, TensorInfo
from xarch.registry.loader import get_registry
from xarch.testing import (
    BatchStepConformance,
    ConnectorConformance,
    ObjectiveConformance,
    OptimiserConformance,
    ScheduleConformance,
)

LAYOUTS = {
    "BC": {"C": 4},
    "BLD": {"D": 4},
    "BTD": {"D": 4},
    "BCHW": {"C": 4},
}


def tap(name: str, layout: str, **shape: int) -> Tap:
    return Tap(name, "feature", layout, shape or LAYOUTS[layout])


class Dense(ObjectiveConformance):
    """One value against another of the same layout."""

    layout: ClassVar[str] = "BLD"
    sizes: ClassVar[Mapping[str, int]] = {"L": 5, "T": 3, "H": 2, "W": 3}


def dense(name: str, layout: str, **more: Any) -> type[ObjectiveConformance]:
    sides = {"student": tap("s", layout), "teacher": tap("t", layout)}
    return type(f"Test_{name}_{layout}".replace("-", "_"), (Dense,), {"objective": name, **sides, **more})


DISTANCES = ("mse", "l2", "relative-l2", "cosine", "huber", "smooth-l1")
# Huber and smooth-L1 have a kink in their second derivative only; a norm has one at zero, where nobody is.
for _name in DISTANCES:
    for _layout in LAYOUTS:
        _made = dense(_name, _layout)
        globals()[_made.__name__] = _made


class TestKL(ObjectiveConformance):
    objective = "kl"
    options: ClassVar[Mapping[str, Any]] = {"temperature": 2.0}
    student = Tap("s", "logits", "BK", {"K": 5})
    teacher = Tap("t", "logits", "BK", {"K": 5})


class TestReverseKL(TestKL):
    options: ClassVar[Mapping[str, Any]] = {"direction": "reverse"}
    student = Tap("s", "logits", "BLK", {"K": 5})
    teacher = Tap("t", "logits", "BLK", {"K": 5})


class TestCorrelation(ObjectiveConformance):
    objective = "correlation"


class TestCorrelationOverTheBatch(ObjectiveConformance):
    objective = "correlation"
    options: ClassVar[Mapping[str, Any]] = {"across": "batch"}
    student = Tap("s", "logits", "BK", {"K": 5})
    teacher = Tap("t", "logits", "BK", {"K": 5})


class TestCrossEntropy(ObjectiveConformance):
    objective = "cross-entropy"
    options: ClassVar[Mapping[str, Any]] = {"smoothing": 0.1}
    student = Tap("s", "logits", "BK", {"K": 5})
    teacher = Tap("labels", "batch", "B")
    data: ClassVar[Mapping[str, Any]] = {"classes": 5}

    def teacher_value(self, generator: torch.Generator) -> Any:
        return torch.randint(0, 5, (self.samples,), generator=generator)


class TestHardLabel(ObjectiveConformance):
    objective = "hard-label"
    student = Tap("s", "logits", "BK", {"K": 5})
    teacher = Tap("t", "logits", "BK", {"K": 5})
    data: ClassVar[Mapping[str, Any]] = {"classes": 5}


class TestFSP(ObjectiveConformance):
    objective = "fsp"
    student: ClassVar[Any] = {"a": Tap("a", "feature", "BLD", {"D": 3}), "b": Tap("b", "feature", "BLD", {"D": 4})}
    teacher: ClassVar[Any] = {"a": Tap("a", "feature", "BLD", {"D": 3}), "b": Tap("b", "feature", "BLD", {"D": 4})}


@pytest.mark.parametrize("name", [s.name for s in get_registry().specs("objective") if s.plugin == "core"])
def test_no_objective_is_forgotten(name: str) -> None:
    tested = {c.objective for c in globals().values() if isinstance(c, type) and issubclass(c, ObjectiveConformance)}
    assert name in tested


class TestLinear(ConnectorConformance):
    connector = "linear"


class TestConv1x1(ConnectorConformance):
    connector = "conv1x1"
    student = Tap("s", "feature", "BCHW", {"C": 4, "H": 2, "W": 3})
    teacher = Tap("t", "feature", "BCHW", {"C": 6, "H": 2, "W": 3})


class TestConv1x1WithStatistics(TestConv1x1):
    options: ClassVar[Mapping[str, Any]] = {"norm": "batch"}


class TestBridge(ConnectorConformance):
    connector = "bridge"
    student = Tap("s", "feature", "BCHW", {"C": 4, "H": 2, "W": 3})
    teacher = Tap("t", "feature", "BCHW", {"C": 6, "H": 4, "W": 5})


class TestPool(ConnectorConformance):
    connector = "pool"
    teacher = Tap("t", "feature", "BC", {"C": 6})


class TestExit(ConnectorConformance):
    connector = "exit"
    options: ClassVar[Mapping[str, Any]] = {"hidden": 7, "dropout": 0.3}
    student = Tap("s", "feature", "BCHW", {"C": 4, "H": 2, "W": 3})
    teacher = Tap("t", "logits", "BK", {"K": 5})


class TestExitForLabels(TestExit):
    options: ClassVar[Mapping[str, Any]] = {"norm": "batch"}
    teacher = Tap("labels", "batch", "B")
    data: ClassVar[Mapping[str, Any]] = {"classes": 5}


@pytest.mark.parametrize("name", [s.name for s in get_registry().specs("connector") if s.plugin == "core"])
def test_no_connector_is_forgotten(name: str) -> None:
    tested = {c.connector for c in globals().values() if isinstance(c, type) and issubclass(c, ConnectorConformance)}
    assert name in tested


class TestMixup(BatchStepConformance):
    step = "mixup"
    tensors: ClassVar[Mapping[str, TensorInfo]] = {
        "images": TensorInfo("BCHW", {"C": 3, "H": 2, "W": 2}),
        "labels": TensorInfo("B"),
    }
    data: ClassVar[Mapping[str, Any]] = {"classes": 5}

    def batch(self) -> Batch:
        made = super().batch()
        return made.replace(labels=torch.arange(self.samples) % 5)


class TestRepeat(BatchStepConformance):
    step = "repeat"
    options: ClassVar[Mapping[str, Any]] = {"names": ["gold", "kd"]}


class TestShuffleTeacher(BatchStepConformance):
    step = "shuffle-teacher"
    models: ClassVar[Collection[str]] = ("x",)


class TestAdamW(OptimiserConformance):
    algorithm = "adamw"


class TestSGD(OptimiserConformance):
    algorithm = "sgd"
    lr = 0.1


class TestLamb(OptimiserConformance):
    algorithm = "lamb"


class TestMuon(OptimiserConformance):
    algorithm = "muon"


@pytest.mark.parametrize("name", [s.name for s in get_registry().specs("optimiser") if s.plugin == "core"])
def test_no_optimiser_is_forgotten(name: str) -> None:
    tested = {c.algorithm for c in globals().values() if isinstance(c, type) and issubclass(c, OptimiserConformance)}
    assert name in tested


class TestWSD(ScheduleConformance):
    schedule = "wsd"


class TestCosine(ScheduleConformance):
    schedule = "cosine"


class TestConstant(ScheduleConformance):
    schedule = "constant"
    falls = False


class TestLinearSchedule(ScheduleConformance):
    schedule = "linear"


class TestPolynomial(ScheduleConformance):
    schedule = "polynomial"


class TestStep(ScheduleConformance):
    schedule = "step"


@pytest.mark.parametrize("name", [s.name for s in get_registry().specs("schedule") if s.plugin == "core"])
def test_no_schedule_is_forgotten(name: str) -> None:
    tested = {c.schedule for c in globals().values() if isinstance(c, type) and issubclass(c, ScheduleConformance)}
    assert name in tested
