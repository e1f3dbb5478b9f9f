"""What every stage of a run shares: its plan, models, data, logs and signals."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from xarch.contracts.model import Student
from xarch.engine.curve import QualityCurve
from xarch.engine.distributed import Distributed
from xarch.engine.events import Reporter
from xarch.engine.metrics import MetricsLog
from xarch.engine.signals import StopRequest
from xarch.engine.teacher import Autocast
from xarch.files.run_dir import RunDir
from xarch.planning.plan import Plan
from xarch.registry.registry import Registry
from xarch.run.evaluate import Evaluator
from xarch.run.sides import RunSides


@dataclass
class RunParts:
    """Parts of a run that its stages use.

    Attributes:
        plan, run, registry: what is run, its folder, and the plugins.
        reporter, metrics, curve: where it is reported, logged and measured over time.
        ranks, device, autocast: where it runs, and the precision of forward passes.
        stop: the request to stop, once a signal arrived.
        student, sides, evaluator: the models, the data and the metric.
    """

    plan: Plan
    run: RunDir
    registry: Registry
    reporter: Reporter
    ranks: Distributed
    device: torch.device
    metrics: MetricsLog
    curve: QualityCurve
    stop: StopRequest
    student: Student
    sides: RunSides
    evaluator: Evaluator
    autocast: Autocast

    def shared(self) -> dict[str, Any]:
        """Return the parts by name, to build another object on them."""
        return {part.name: getattr(self, part.name) for part in fields(RunParts)}
