"""Planned batches of a stage: their tensors after batch steps, and such batches on the meta device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from xarch.config.schema import Stage
from xarch.config.validation import validated
from xarch.contracts.batch import Batch
from xarch.contracts.batch_step import BatchStep
from xarch.contracts.data import DataInfo, TensorInfo
from xarch.contracts.tap import Tap
from xarch.errors import PlanError
from xarch.matching.references import STUDENT, find_tap, near
from xarch.registry.registry import Registry

POSITIONS = frozenset("BLT")
"""Dimensions of tensors that hold integers by default (labels, token ids)."""


@dataclass(frozen=True)
class PlannedBatches:
    """Tensors of a stage's batches after its batch steps.

    Attributes:
        tensors: key -> declaration.
        steps: the steps, built with validated options, in order.
        made: key -> name of the last step that declares it.
    """

    tensors: Mapping[str, TensorInfo]
    steps: tuple[BatchStep, ...]
    made: Mapping[str, str]

    def work(self, sample: Mapping[str, Any], *, student: float, teacher: float) -> float:
        """Return the multiply-adds of all steps per budget unit."""
        return sum(step.work(sample, student=student, teacher=teacher) for step in self.steps)


def plan_batches(
    registry: Registry, name: str, stage: Stage, data: DataInfo, models: Mapping[str, Mapping[str, Tap]] | None = None
) -> PlannedBatches:
    """Return the tensors available to a stage's matches.

    Args:
        models: name -> taps of what the steps may run, "" for the main teacher; None where that is proven already.

    Raises:
        UsageError: a step or one of its options does not exist.
        PlanError: a step reads a tensor that does not exist or has another layout, or a tap that does not exist.
    """
    tensors = dict(data.tensors)
    steps = []
    origin: dict[str, str] = {}
    for key, given in stage.batch.steps.items():
        where = f"stages.{name}.batch.steps.{key}"
        spec = registry.get("batch_step", key, where=f"stages.{name}.batch.steps")
        kind: type[BatchStep] = registry.resolve(spec)
        options = validated(kind.Options, given or {}, where)
        with registry.guard(spec, where):
            step = kind(options, data.facts)
            for wanted, layout in step.reads().items():
                _prove(wanted, layout, tensors, where)
            if models is not None:
                for model, taps in step.taps().items():
                    _prove_taps(model, taps, models, where)
            made = dict(step.makes(dict(tensors)))
        tensors |= made
        origin |= dict.fromkeys(made, key)
        steps.append(step)
    return PlannedBatches(tensors, tuple(steps), origin)


def _prove(key: str, layout: str, tensors: Mapping[str, TensorInfo], where: str) -> None:
    if key not in tensors:
        raise PlanError(
            f"{where} reads the tensor {key!r}, which batches do not have at that point",
            near(key, tensors, "tensors of the data and of the steps before it"),
        )
    if layout not in ("*", tensors[key].layout):
        raise PlanError(
            f"{where} reads {key!r} as {layout}, but batches have it as {tensors[key].layout}",
            "add a step that produces this layout before it, or use other data",
        )


def _prove_taps(model: str, taps: Collection[str], models: Mapping[str, Mapping[str, Tap]], where: str) -> None:
    whose = f"teacher {model!r}" if model else "the teacher"
    if model not in models:
        raise PlanError(
            f"{where}: it runs {whose}, which this run does not have",
            near(model, [name for name in models if name], "models that a batch step can run"),
        )
    for tap in taps:
        find_tap(models[model], tap, "the student" if model == STUDENT else whose, where)


def meta_batch(tensors: Mapping[str, TensorInfo], samples: int, units: int, sizes: Mapping[str, int]) -> Batch | None:
    """Return a batch on the meta device; None if a size is unknown.

    Args:
        samples, units: those of the batch.
        sizes: sizes of dimensions not fixed by declarations, e.g. ``{"L": 512}``.
    """
    made = {}
    for key, info in tensors.items():
        shape = [samples]
        for letter in info.layout[1:]:
            size = info.shape.get(letter, sizes.get(letter))
            if size is None:
                return None
            shape.append(size)
        made[key] = torch.empty(shape, dtype=_dtype(info), device="meta")
    return Batch(made, units)


def _dtype(info: TensorInfo) -> torch.dtype:
    if info.dtype:
        named: torch.dtype = getattr(torch, info.dtype)
        return named
    return torch.int64 if set(info.layout) <= POSITIONS else torch.float32
