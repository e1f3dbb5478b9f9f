"""The kit over every mutant; run by ``test_mutants.py`` with the mutants' plugin loaded."""

from __future__ import annotations

from typing import Any

from tests.testing import mutant_models as models
from tests.testing import mutant_plugin as mutants
from xarch import TensorInfo
from xarch.testing import (
    BatchStepConformance,
    ConnectorConformance,
    DataConformance,
    FamilyConformance,
    MethodConformance,
    MetricConformance,
    ObjectiveConformance,
    OptimiserConformance,
    ScheduleConformance,
    SourceConformance,
    StageConformance,
    TargetConformance,
)


def over(base: type, attribute: str, kinds: Any, **more: Any) -> None:
    """A subclass of ``base`` for each of ``kinds``."""
    for kind in kinds:
        name = f"Test{kind.__name__}"
        globals()[name] = type(name, (base,), {attribute: mutants.name_of(kind), "__module__": __name__, **more})


over(ObjectiveConformance, "objective", mutants.OBJECTIVES)
over(ConnectorConformance, "connector", mutants.CONNECTORS)
tensors = {"x": TensorInfo("BD", {"D": 3}), "y": TensorInfo("BD", {"D": 3})}
over(BatchStepConformance, "step", mutants.STEPS, tensors=tensors)
over(MetricConformance, "metric", mutants.METRICS, family="kit")
over(ScheduleConformance, "schedule", (mutants.RightSchedule, mutants.EndsHigh))
over(OptimiserConformance, "algorithm", (mutants.ForgetsItsCount,))
# A whole conversion has checks of its own; these faults are found before it.
over(TargetConformance, "adapter", models.TARGETS, test_tiny_conversion_to_verified_onnx=None)
for source in models.SOURCES:
    over(SourceConformance, "_", (source,), ref=f"{mutants.name_of(source)}:2")
over(StageConformance, "kind", models.STAGES, family="kit", target="right-target")
for data in mutants.DATA:
    over(DataConformance, "_", (data,), ref=f"{mutants.name_of(data)}:rows")


class TestKitFamily(FamilyConformance):
    family = "kit"


class TestLossyFamily(FamilyConformance):
    family = "lossy"


class TestOtherFamilies(MethodConformance):
    """Registered for other families than its file names; the conversion has checks of its own."""

    method = "other-families"
    test_it_runs = None
