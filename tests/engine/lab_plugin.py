"""Objectives, connectors, batch steps, students and a stage kind that show what a stage does to them."""

from __future__ import annotations

import torch
from stack_plugin import LowTarget, StackMetric, StackStudent
from torch import nn

from xarch import BatchStep, Connector, Objective, Options, StageKind, StageOutcome, TensorInfo, hookimpl

BOTH = frozenset({("BLD", "BLD"), ("BLD", "none")})


class Seen(Objective):
    """MSE that counts what it sees."""

    accepts = BOTH
    rows = 0.0

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        self.rows = float(len(batch))
        loss = (student - (0.0 if teacher is None else teacher)).square().mean(-1)
        return (loss if mask is None else loss * mask).sum(1)

    def weight(self, batch, target=None, *, mask=None):
        return torch.full((len(batch),), float(batch["x"].shape[1])) if mask is None else mask.sum(1)

    def monitor(self):
        return {"rows": self.rows}


class Coupled(Seen):
    """Differences between samples."""

    @property
    def couples(self):
        return "batch"

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        self.rows = float(len(batch))
        s, t = student.flatten(1), teacher.flatten(1)
        return (s @ s.T - t @ t.T).square().mean(1)


class Hungry(Seen):
    """Runs out of memory on more than ``most`` samples."""

    class Options(Options):
        most: int = 100
        coupled: bool = False

    @property
    def couples(self):
        return "batch" if self.options.coupled else "sample"

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        if not student.is_meta and len(batch) > self.options.most:
            raise torch.OutOfMemoryError("planted: not enough memory")
        return super().forward(student, teacher, batch, mask=mask)


class ByTarget(Seen):
    """Weighs every sample by its target, as methods do that trust a teacher's label."""

    weighs_target = True

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return (student - teacher).square().flatten(1).mean(1) * self.weight(batch, teacher)

    def weight(self, batch, target=None, *, mask=None):
        return target.flatten(1).abs().mean(1)


class Scaled(Seen):
    """An option that may be a schedule."""

    class Options(Options):
        scale: float = 1.0

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return self.options.scale * torch.ones(len(batch)) * batch["x"].shape[1] + 0.0 * student.sum()


class Spread(Objective):
    """Joined taps, or several teachers."""

    accepts = BOTH
    joins = ensembles = True

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        students = student if isinstance(student, dict) else {"": student}
        teachers = teacher if isinstance(teacher, dict) else {"": teacher}
        self.sides = float(len(students)), float(len(teachers))
        weights = self.context.weights
        found = sum(weights.get(n, 1.0) * t for n, t in teachers.items()) / sum(weights.get(n, 1.0) for n in teachers)
        return sum((s - found).square().flatten(1).mean(1) for s in students.values())

    def monitor(self):
        return dict(zip(("students", "teachers"), self.sides, strict=True))


class Pull(Objective):
    """Brings a tap to another one of the student's own, or to an auxiliary value."""

    accepts = BOTH

    def forward(self, student, teacher, batch, *, mask=None, aim=None):
        return (student - (teacher if aim is None else aim)).square().flatten(1).mean(1)


class NormExit(Connector):
    """Batch statistics and chance between a tap and its objective."""

    def __init__(self, student, teacher, options, context):
        super().__init__(student, teacher, options, context)
        width = student.shape["D"]
        self.norm, self.drop, self.out = nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, width)

    @property
    def tap(self):
        return self.student_tap

    def forward(self, value, batch, *, mask=None):
        return self.out(self.drop(self.norm(value.flatten(0, 1)))).view(value.shape)


class Line(Connector):
    """A plain linear map."""

    def __init__(self, student, teacher, options, context):
        super().__init__(student, teacher, options, context)
        self.out = nn.Linear(student.shape["D"], student.shape["D"])

    @property
    def tap(self):
        return self.student_tap

    def forward(self, value, batch, *, mask=None):
        return self.out(value)


class Jitter(BatchStep):
    """Adds noise and a tensor made of the student's output; says what it saw."""

    class Options(Options):
        size: float = 0.1

    def reads(self):
        return {"x": "BLD"}

    def makes(self, tensors):
        return {"made": TensorInfo("BLD", dict(tensors["x"].shape)), "x": tensors["x"]}

    def __call__(self, batch, context):
        assert not context.student.module.training
        assert not torch.is_grad_enabled()
        noise = torch.randn(batch["x"].shape, generator=context.generator) * self.options.size
        moved = batch.replace(x=batch["x"] + noise)
        made = context.student.collect(moved, {"layers.2.output"})["layers.2.output"]
        context.log(
            jitter=self.options.size,
            seen_loss=context.figures.get("loss", -1.0),
            training=float(context.training),
            at=context.progress,
        )
        return moved.replace(made=made * 0)


class Padding(BatchStep):
    """Fills the second half of every sample, and masks it."""

    def reads(self):
        return {"x": "BLD"}

    def makes(self, tensors):
        return {"mask": TensorInfo("BL", dtype="float32")}

    def __call__(self, batch, context):
        mask = torch.ones(batch["x"].shape[:2])
        mask[:, mask.shape[1] // 2 :] = 0.0
        return batch.replace(x=batch["x"].masked_fill(mask[..., None] == 0, 1e4), mask=mask)


class OwnOutput(BatchStep):
    """What the student says now, as samples that it draws itself would be."""

    def makes(self, tensors):
        return {"said": TensorInfo("BLD", dict(tensors["x"].shape))}

    def __call__(self, batch, context):
        return batch.replace(said=context.student.collect(batch, {"layers.2.output"})["layers.2.output"])


class Faulty(BatchStep):
    """Goes wrong as ``how`` says."""

    class Options(Options):
        how: str = "nothing"

    def makes(self, tensors):
        return {"made": TensorInfo("BLD", dict(tensors["x"].shape))}

    def __call__(self, batch, context):
        if self.options.how == "memory":
            raise torch.OutOfMemoryError("planted: not enough memory")
        return batch if self.options.how == "nothing" else batch.replace(made=batch["x"].mean(1))


class Mean(Seen):
    """Forgets that every sample has a loss of its own."""

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        return (student - teacher).square().mean()


class Normed(StackStudent):
    """A stack with batch statistics and dropout before its last layer."""

    def __init__(self, facts, device):
        super().__init__(facts, device)
        with torch.device(device):
            self.module.norm = nn.BatchNorm1d(facts.width)

    def run(self, batch, wanted, sink):
        x = self.module.norm(batch["x"].flatten(0, 1)).view(batch["x"].shape)
        super().run(batch.replace(x=x), wanted, sink)

    def param_groups(self):
        groups = super().param_groups()
        return {**groups, "layers": [n for n in groups["all"] if n.startswith("layers.")]}


class Broken(StackStudent):
    def run(self, batch, wanted, sink):
        if not batch.device.type == "meta" and self.module.training:
            raise KeyError("a bug of the student's author")
        super().run(batch, wanted, sink)


class NormedTarget(LowTarget):
    def build(self, facts, options, decisions, *, device):
        return Normed(facts, device)


class BrokenTarget(LowTarget):
    def build(self, facts, options, decisions, *, device):
        return Broken(facts, device)


class TwoWays(StackMetric):
    """Of its headline lower values are better, of another figure higher ones; of the third it does not say."""

    def evaluate(self, request):
        found = super().evaluate(request)
        for figures in (found.teacher, found.student, *found.baselines.values()):
            figures |= {"likeness": -figures["mse"], "unsaid": 1.0}
        found.directions = {"likeness": True}
        return found


class Halving(StageKind):
    """A third party's way of training: steps of its own on the same public context as the built-in kinds."""

    trains = True

    def run(self, context):
        matches, trainable = context.matches(), context.trainable()
        stream = context.batches()
        first = last = 0.0
        for step in range(context.steps):
            batch = context.prepare(next(stream), step)
            last = matches.backward(batch, step / context.steps)["loss"]
            first = first or last
            trainable.clip()
            trainable.step(0.5 ** (step // 5))
            trainable.zero_grad()
            matches.after_step()
            context.progress(step + 1, context.steps)
        found = context.evaluate(4)
        held = matches.measure(context.validation(4))
        figures = {"first": first, "last": last, "mse": found.student["mse"], "held": held["loss"]}
        return StageOutcome(metrics={**figures, "calibration": float(len(context.calibration(8)))})


@hookimpl
def xarch_register(registry):
    me = __name__
    for name in ("Seen", "Coupled", "Hungry", "ByTarget", "Scaled", "Spread", "Pull", "Mean"):
        registry.objective(name.lower(), load=f"{me}:{name}", summary=name)
    registry.connector("norm-exit", load=f"{me}:NormExit", summary="an exit with batch statistics")
    registry.connector("line", load=f"{me}:Line", summary="a linear map")
    registry.batch_step("jitter", load=f"{me}:Jitter", summary="noise")
    registry.batch_step("padding", load=f"{me}:Padding", summary="padding and its mask")
    registry.batch_step("faulty", load=f"{me}:Faulty", summary="goes wrong")
    registry.batch_step("own-output", load=f"{me}:OwnOutput", summary="what the student says")
    registry.target("normed", load=f"{me}:NormedTarget", accepts=["stack"], produces="stack", summary="with statistics")
    registry.metric("two-ways", load=f"{me}:TwoWays", accepts=["stack"], summary="figures of both directions")
    registry.target("broken", load=f"{me}:BrokenTarget", accepts=["stack"], produces="stack", summary="with a bug")
    registry.stage("halving", load=f"{me}:Halving", summary="steps of its own")
