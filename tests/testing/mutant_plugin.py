"""Wrong implementations of every kind, each with one fault that the conformance kit has to find.

``tests.testing.mutant_kit`` subclasses the kit for each of them, and for a right one beside it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from tests.engine import stack_plugin as stack
from xarch import (
    BatchStep,
    Connector,
    DataInfo,
    DataProvider,
    Evaluation,
    Family,
    IndexedData,
    IndexedStream,
    Metric,
    Objective,
    OptimiserKind,
    Options,
    Schedule,
    SourceInfo,
    Tap,
    TensorInfo,
    hookimpl,
    split_indices,
)


class Right(Objective):
    """Mean square, with everything an objective promises."""

    accepts = frozenset({("BLD", "BLD")})

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        error = (student - teacher).square().mean(-1)
        return (
            error.mean(1)
            if mask is None
            else torch.where(mask != 0, error, 0.0).sum(1)
            if mask.ndim == 2
            else (torch.where(mask != 0, error.mean(1), 0.0))
        )

    def weight(self, batch, target=None, *, mask=None):
        return super().weight(batch) if mask is None else mask.reshape(len(batch), -1).sum(1)


class IgnoresItsMask(Right):
    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return super().forward(student, teacher, batch)


class LiesAboutCoupling(Right):
    """Divides by the batch's own scale, and says that samples are alone."""

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return super().forward(student, teacher, batch, mask=mask) / (teacher.std() + 1)


class WeightsByTheBatch(Right):
    def weight(self, batch, target=None, *, mask=None):
        return super().weight(batch, mask=mask) / len(batch)


class Overflows(Right):
    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return super().forward(student.float().exp(), teacher.float().exp(), batch, mask=mask)


class CutsTheGradient(Right):
    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return super().forward(student.detach(), teacher, batch, mask=mask) + 0 * student.sum()


class WritesToTheTeacher(Right):
    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return super().forward(student, teacher.sub_(teacher.mean()), batch, mask=mask)


class OneNumber(Right):
    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return super().forward(student, teacher, batch, mask=mask).mean()


class RoundsToFloat(Right):
    """float64 values become float32, so that its gradient cannot be checked."""

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return super().forward(student.float(), teacher.float(), batch, mask=mask)


class Counts(Right):
    """Adds up its loss."""

    summed = frozenset({"seen"})

    def __init__(self, student, teacher, options, context):
        super().__init__(student, teacher, options, context)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        loss = super().forward(student, teacher, batch, mask=mask)
        if self.counts():
            self.seen += self.added(loss.detach())
        return loss

    def counts(self):
        return self.training

    def added(self, loss):
        return loss.sum().float()


class CountsMeasurements(Counts):
    def counts(self):
        return True


class CountsBatches(Counts):
    def added(self, loss):
        return loss.mean().float()


class LooseOptions(Options):
    model_config: ClassVar[Any] = {"extra": "allow"}


class TakesAnyOption(Right):
    Options = LooseOptions


class RealTensors(Right):
    """Allocates although it is only planned."""

    def __init__(self, student, teacher, options, context):
        super().__init__(student, teacher, options, context)
        self.register_buffer("scale", torch.ones(3, device="cpu"))


class RightConnector(Connector):
    def __init__(self, student, teacher, options, context):
        super().__init__(student, teacher, options, context)
        self.linear = nn.Linear(student.shape["D"], teacher.shape["D"])

    @property
    def tap(self):
        return Tap("made", "hidden", "BLD", {"D": self.teacher_tap.shape["D"]})

    def forward(self, value, batch, *, mask=None):
        return self.linear(value)


class CentresOverTheBatch(RightConnector):
    def forward(self, value, batch, *, mask=None):
        return self.linear(value - value.mean(0))


class RightPooling(RightConnector):
    @classmethod
    def masks(cls, student, layout):
        return layout == "BL"

    @property
    def tap(self):
        return Tap("made", "hidden", "BD", {"D": self.teacher_tap.shape["D"]})

    def forward(self, value, batch, *, mask=None):
        if mask is None:
            return self.linear(value.mean(1))
        kept = torch.where(mask[..., None] != 0, value, 0.0).sum(1)
        return self.linear(kept / mask.sum(1, keepdim=True).clamp_min(1))


class CountsPadding(RightPooling):
    def forward(self, value, batch, *, mask=None):
        return self.linear(value.mean(1))


class DeclaresAnotherWidth(RightConnector):
    @property
    def tap(self):
        return Tap("made", "hidden", "BLD", {"D": self.student_tap.shape["D"]})


class RightStep(BatchStep):
    def reads(self):
        return {"x": "*"}

    def makes(self, tensors):
        return {"noise": TensorInfo("BD", {"D": 2})}

    def __call__(self, batch, context):
        noise = torch.randn(len(batch), 2, generator=context.generator)
        return batch.replace(noise=noise * batch["x"].mean())


class GlobalRandomState(RightStep):
    def __call__(self, batch, context):
        return batch.replace(noise=torch.randn(len(batch), 2))


class PythonsRandomState(RightStep):
    def __call__(self, batch, context):
        return batch.replace(noise=torch.full((len(batch), 2), random.random()))


class ReadsInSecret(RightStep):
    def __call__(self, batch, context):
        return super().__call__(batch, context).replace(noise=batch["y"][:, :2])


class MakesInSecret(RightStep):
    def __call__(self, batch, context):
        return super().__call__(batch, context).replace(more=torch.zeros(len(batch)))


class ForgetsValidation(RightStep):
    """The key that a loss reads is missing in validation."""

    def __call__(self, batch, context):
        return super().__call__(batch, context) if context.training else batch


class ChangesItsInput(RightStep):
    def __call__(self, batch, context):
        batch["x"].add_(1)
        return super().__call__(batch, context)


class Rows(IndexedData):
    def __len__(self):
        return 40

    def __getitem__(self, index, generator):
        return {"x": torch.full((4, 8), float(index))}


class RightData(DataProvider):
    def describe(self, request):
        return DataInfo("rows", "rows", "row", tensors={"x": TensorInfo("BLD", {"D": 8})})

    def indices(self, split):
        return split_indices(40, split, calibration=0.1)

    def open(self, request):
        return IndexedStream(Rows(), request, indices=self.indices(request.split))


class SplitsOverlap(RightData):
    def indices(self, split):
        found = split_indices(40, split, calibration=0.1)
        return [*found, *split_indices(40, "train", calibration=0.1)[:1]] if split == "heldout" else found


class Repeating(IndexedStream):
    def state_dict(self):
        return {**super().state_dict(), "drawn": max(self._drawn - 1, 0)}


class RepeatsAfterResume(RightData):
    def open(self, request):
        return Repeating(Rows(), request, indices=self.indices(request.split))


class Forgetful(IndexedStream):
    """Keeps what it has already read ahead when its position is set."""

    def load_state_dict(self, state):
        self._drawn = int(state["drawn"]) if self._pieces is None else self._drawn


class CannotBeSetBack(RightData):
    def open(self, request):
        return Forgetful(Rows(), request, indices=self.indices(request.split))


class Rising(Rows):
    """Its samples depend on how many were read before: workers have read other ones."""

    read = 0

    def __getitem__(self, index, generator):
        self.read += 1
        return {"x": torch.full((4, 8), float(self.read))}


class DependsOnWorkers(RightData):
    def open(self, request):
        return IndexedStream(Rising(), request, indices=self.indices(request.split))


class DeclaresAnotherSize(RightData):
    def describe(self, request):
        return DataInfo("rows", "rows", "row", tensors={"x": TensorInfo("BLD", {"D": 9})})


@dataclass(frozen=True)
class KitFacts(stack.StackFacts):
    """Facts of the kit's own family."""


class KitTeacher(stack.StackTeacher):
    family = "kit"
    fingerprint = "kit-teacher"


class KitSource(stack.StackSource):
    def tiny(self, options):
        return options

    def describe(self, ref, options):
        facts = KitFacts(layers=int(ref))
        return SourceInfo("kit", facts, facts.layers * (facts.width**2 + facts.width), 0, "kit")

    def load(self, ref, options, *, device, dtype):
        return KitTeacher(KitFacts(layers=int(ref)))


class KitFamily(Family):
    Facts = KitFacts
    unit = "row"
    tensors: ClassVar[Any] = {"x": "BLD"}
    places: ClassVar[Any] = {"hidden": "layers.{}.output"}
    metric = "right-metric"

    def example_batch(self, facts, samples=2, seed=0):
        x = torch.randn(samples, 4, facts.width, generator=torch.Generator().manual_seed(seed))
        return stack.Batch({"x": x}, samples * 4)

    def tiny_teacher(self, folder):
        return "kit:2"

    def tiny_run(self, folder):
        return {"data.ref": "right-data:rows"}


@dataclass(frozen=True)
class LossyFacts(KitFacts):
    """Forgets its width."""

    width: int = 8

    def to_json(self):
        return {"layers": self.layers}

    @classmethod
    def from_json(cls, data):
        return cls(layers=data["layers"], width=4)


class LossyTeacher(KitTeacher):
    family = "lossy"


class LossySource(stack.StackSource):
    def load(self, ref, options, *, device, dtype):
        return LossyTeacher(LossyFacts(layers=int(ref)))


class LossyFamily(KitFamily):
    """Two faults: facts that JSON changes, and a place that is no tap."""

    Facts = LossyFacts
    places: ClassVar[Any] = {"hidden": "blocks.{}.output"}

    def tiny_teacher(self, folder):
        return "lossy:2"


class RightMetric(Metric):
    figures = ("error",)

    def evaluate(self, request):
        return self.measured(request)

    def measured(self, request):
        found, last = {}, "layers.1.output"
        batches = list(request.batches())
        for name, model in request.students.items():
            errors = []
            for batch in batches:
                wanted = request.teacher.collect(batch, {last})[last]
                errors.append(float((model.collect(batch, {last})[last] - wanted).square().mean()))
            found[name] = {"error": sum(errors) / len(errors)}
        for batch in batches:
            request.progress(batch.units)
        student = found.pop("student")
        return Evaluation("error", False, "", {"error": 0.0}, student, found, n=len(batches))


class MeasuresMoreThanItSays(RightMetric):
    figures = ("mistake",)


class ChangesTheModel(RightMetric):
    def evaluate(self, request):
        found = self.measured(request)
        for model in request.students.values():
            next(model.module.parameters()).data.mul_(1.01)
        return found


class DrawsRandomNumbers(RightMetric):
    def evaluate(self, request):
        torch.rand(1)
        return self.measured(request)


class SwitchesToEval(RightMetric):
    def evaluate(self, request):
        request.students["student"].module.eval()
        return self.measured(request)


class EndsHigh(Schedule):
    def factor(self, step, steps, warm, options, *, final):
        return 1.0 - 0.7 * (step - warm) / max(steps - warm, 1)


class RightSchedule(Schedule):
    def factor(self, step, steps, warm, options, *, final):
        return final + (1 - final) * (1 - (step - warm + 1) / max(steps - warm, 1))

    def falls_at(self, steps, options):
        return 0


class CountsInPython(torch.optim.SGD):
    """Its steps shrink with a count that no checkpoint holds."""

    def step(self, closure=None):
        self.count = getattr(self, "count", 0) + 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.count
        return super().step(closure)


class ForgetsItsCount(OptimiserKind):
    def build(self, groups, lr, options, *, fused):
        return CountsInPython([dict(g) for g in groups], lr=lr)

    def moments(self):
        return 0


OBJECTIVES = (
    Right,
    IgnoresItsMask,
    LiesAboutCoupling,
    WeightsByTheBatch,
    Overflows,
    CutsTheGradient,
    WritesToTheTeacher,
    OneNumber,
    RoundsToFloat,
    TakesAnyOption,
    RealTensors,
    Counts,
    CountsMeasurements,
    CountsBatches,
)
CONNECTORS = (RightConnector, RightPooling, CentresOverTheBatch, CountsPadding, DeclaresAnotherWidth)
STEPS = (
    RightStep,
    GlobalRandomState,
    PythonsRandomState,
    ReadsInSecret,
    MakesInSecret,
    ForgetsValidation,
    ChangesItsInput,
)
DATA = (RightData, SplitsOverlap, RepeatsAfterResume, CannotBeSetBack, DependsOnWorkers, DeclaresAnotherSize)
METRICS = (RightMetric, MeasuresMoreThanItSays, ChangesTheModel, DrawsRandomNumbers, SwitchesToEval)


def name_of(mutant: type) -> str:
    """The registered name: IgnoresItsMask -> ignores-its-mask."""
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in mutant.__name__).lstrip("-")


@hookimpl
def xarch_register(registry):
    me = __name__
    for kinds, declare in (
        (OBJECTIVES, registry.objective),
        (CONNECTORS, registry.connector),
        (STEPS, registry.batch_step),
        (DATA, registry.data),
        ((RightSchedule, EndsHigh), registry.schedule),
        ((ForgetsItsCount,), registry.optimiser),
    ):
        for mutant in kinds:
            declare(name_of(mutant), load=f"{me}:{mutant.__name__}", summary="for tests of the kit")
    registry.method("other-families", load="xarch_methods:kd/method.yaml", families=["kit"])
    for mutant in METRICS:
        registry.metric(name_of(mutant), load=f"{me}:{mutant.__name__}", accepts=["kit"])
    registry.family("kit", load=f"{me}:KitFamily")
    registry.family("lossy", load=f"{me}:LossyFamily")
    registry.source("kit", load=f"{me}:KitSource", produces="kit")
    registry.source("lossy", load=f"{me}:LossySource", produces="lossy")
