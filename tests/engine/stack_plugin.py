"""A complete third-party family for the engine's tests: a stack of tanh layers becomes a stack of low-rank layers.

Nothing in it is a decoder, so these tests also show that the engine needs no architecture by name.
"""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from xarch import (
    Batch,
    BatchStream,
    DataInfo,
    DataProvider,
    Evaluation,
    Family,
    Initialisation,
    LocalStudent,
    Metric,
    Objective,
    Options,
    Site,
    Solver,
    SourceAdapter,
    SourceInfo,
    StageKind,
    StageOutcome,
    Tap,
    TargetAdapter,
    Teacher,
    TensorInfo,
    hookimpl,
)


@dataclass(frozen=True)
class StackFacts:
    """Width and depth of a stack."""

    layers: int = 3
    width: int = 8

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, data):
        return cls(**data)

    def taps(self):
        taps = [
            Tap(f"layers.{i}.{leaf}", "hidden", "BLD", {"D": self.width})
            for i in range(self.layers)
            for leaf in ("input", "output")
        ]
        return {t.name: t for t in taps}

    def tiny(self):
        return replace(self, layers=min(self.layers, 2))

    def work(self, sample):
        return float(self.layers * self.width**2)


class StackFamily(Family):
    """Rows of numbers in, rows of numbers out; a mask may say which rows count."""

    Facts = StackFacts
    unit = "row"
    tensors: ClassVar = {"x": "BLD", "mask?": "BL"}
    mask = "mask"
    metric = "stack_mse"

    def accepts(self, facts, data):
        width = data.tensors["x"].shape.get("D", facts.width)
        return None if width == facts.width else f"it has rows of {width} numbers, the model reads {facts.width}"


class Low(nn.Module):
    """tanh(x U V + b)."""

    def __init__(self, width):
        super().__init__()
        self.u = nn.Parameter(torch.randn(width, 2) * 0.1)
        self.v = nn.Parameter(torch.randn(2, width) * 0.1)
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return torch.tanh(x @ self.u @ self.v + self.b)


def _walk(layers, batch, wanted, sink):
    x, left = batch["x"], set(wanted)
    for i, layer in enumerate(layers):
        for leaf in ("input", "output"):
            x = layer(x) if leaf == "output" else x
            if f"layers.{i}.{leaf}" in left:
                sink(f"layers.{i}.{leaf}", x)
                left.discard(f"layers.{i}.{leaf}")
        if not left:
            return


class StackTeacher(Teacher):
    family = "stack"
    ref = "stack:3"
    fingerprint = "stack-3"

    def __init__(self, facts):
        self.facts = facts
        torch.manual_seed(7)
        self.module = nn.Sequential(
            *[nn.Sequential(nn.Linear(facts.width, facts.width), nn.Tanh()) for _ in range(facts.layers)]
        )
        self.module.requires_grad_(False).eval()

    def taps(self):
        return self.facts.taps()

    def run(self, batch, wanted, sink):
        _walk(self.module, batch, wanted, sink)

    def weights(self):
        return self.module.state_dict()

    def work(self, sample):
        return self.facts.work(sample)


class StackStudent(LocalStudent):
    family = "stack"

    def __init__(self, facts, device):
        self.facts = facts
        with torch.device(device):
            self.module = nn.Module()
            self.module.layers = nn.ModuleList([Low(facts.width) for _ in range(facts.layers)])

    def taps(self):
        return self.facts.taps()

    def run(self, batch, wanted, sink):
        _walk(self.module.layers, batch, wanted, sink)

    def sites(self):
        taps = self.facts.taps()
        names = [f"layers.{i}" for i in range(self.facts.layers)]
        return {n: Site(n, {"input": f"{n}.input"}, {"output": taps[f"{n}.output"]}) for n in names}

    def run_site(self, site, inputs, wanted, batch):
        return {"output": self.module.layers[int(site.split(".")[1])](inputs["input"])}

    def param_groups(self):
        names = [n for n, _ in self.module.named_parameters()]
        return {"all": names, "biases": [n for n in names if n.endswith(".b")]}

    def shard_units(self):
        return list(self.module.layers)


class BiasSolver(Solver):
    """Mean of the teacher's pre-activation, in closed form."""

    def __init__(self, student, site):
        self.layer = student.module.layers[int(site.split(".")[1])]
        self.inputs = {f"{site}.output"}
        self.name = f"{site}.output"
        self.total, self.count = 0.0, 0

    def observe(self, values, batch):
        Trouble.moment()
        z = torch.atanh(values[self.name].clamp(-0.999, 0.999))
        self.total = self.total + z.sum((0, 1))
        self.count += z.shape[0] * z.shape[1]

    def solve(self):
        self.layer.b.data.copy_(self.total / self.count)
        return {"bias_norm": float(self.layer.b.norm())}


class StackSource(SourceAdapter):
    def describe(self, ref, options):
        facts = StackFacts(layers=int(ref))
        return SourceInfo("stack", facts, facts.layers * (facts.width**2 + facts.width), 0, "stack")

    def load(self, ref, options, *, device, dtype):
        return StackTeacher(StackFacts(layers=int(ref)))

    def random(self, ref, options, *, device, seed):
        teacher = StackTeacher(StackFacts(layers=int(ref)))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for layer in teacher.module:
                layer[0].reset_parameters()
        teacher.fingerprint = f"random-{seed}"
        return teacher


class LowTarget(TargetAdapter):
    def facts_from_data(self, data, options):
        return StackFacts(width=data.tensors["x"].shape["D"])

    def build(self, facts, options, decisions, *, device):
        return StackStudent(facts, device)

    def initialise(self, student, teacher):
        return self.initialisation(student.facts, student)

    def initialisation(self, facts, student):
        return Initialisation(new=tuple(n for n, _ in student.module.named_parameters()))

    def solver(self, student, site, options):
        return BiasSolver(student, site)

    def recipe(self, facts, options):
        return "none"

    def export_graphs(self, student, profile, options):
        return []


class NoiseOptions(Options):
    """``mask``: the name under which a random mask is given, "" for none. ``numbers``: whether samples have numbers.
    ``watch``: whether the losses of the samples are wanted."""

    mask: str = ""
    numbers: bool = False
    watch: bool = False


class Noise(BatchStream):
    taken: ClassVar = []

    def __init__(self, request, width, seed, finite):
        self.options = request.options
        self.watches_losses = request.options.watch
        self.shape = (request.samples, request.sample.get("length", 4), width)
        self.seed, self.at, self.finite = seed, 0, finite

    def __next__(self):
        if self.finite and self.at >= self.finite:
            raise StopIteration
        generator = torch.Generator().manual_seed(self.seed * 100003 + self.at)
        tensors = {"x": torch.randn(self.shape, generator=generator)}
        if self.options.mask:
            lengths = torch.randint(1, self.shape[1] + 1, (self.shape[0], 1), generator=generator)
            tensors[self.options.mask] = (torch.arange(self.shape[1]) < lengths).float()
        if self.options.numbers:
            tensors["sample_id"] = torch.arange(self.shape[0]) + self.shape[0] * self.at
        self.at += 1
        return Batch(tensors, self.shape[0] * self.shape[1])

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]

    def take_losses(self, batch, losses):
        self.taken.append((batch, losses))


class NoiseSample(Options):
    length: int = 4


class NoiseData(DataProvider):
    Options = NoiseOptions
    Sample = NoiseSample

    def describe(self, request):
        tensors = {"x": TensorInfo("BLD", {"D": int(request.ref)})}
        if request.options.mask:
            tensors[request.options.mask] = TensorInfo("BL", dtype="float32")
        if request.options.numbers:
            tensors["sample_id"] = TensorInfo("B")
        return DataInfo("noise", "noise", "row", tensors=tensors)

    def units_per_sample(self, sample):
        return sample.get("length", 4)

    def sizes(self, sample):
        return {"L": sample.get("length", 4)}

    def open(self, request):
        offset = {"train": 1, "validation": 2, "heldout": 3, "calibration": 4}[request.split]
        seed = request.seed * 10 + offset
        return Noise(request, int(request.ref), seed, 0 if request.split == "train" else 4)


class Trouble:
    """What goes wrong and when, from the environment: ``KIND@MOMENT``; moments are counted in every stage."""

    moments = 0

    @classmethod
    def moment(cls) -> str:
        """Count one moment; kill, signal or raise when it is the one, and return the kind of trouble due now."""
        cls.moments += 1
        kind, _, at = os.environ.get("SABOTAGE", "").partition("@")
        if not at or kind == "oom" or cls.moments != int(at):
            return ""
        if kind in ("kill", "term", "int"):
            signal.raise_signal(getattr(signal, f"SIG{kind.upper()}"))
        if kind == "bug":
            raise ZeroDivisionError("planted bug")
        if kind == "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        if kind == "space":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + (1 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        if kind == "full":
            # No file may grow beyond this from now on: what a full disk is to a writer, without one.
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
        return kind


class Sabotage(Objective):
    """MSE that goes wrong where the environment says so: NaN, out of memory, a kill, at a given moment."""

    accepts = frozenset({("BLD", "BLD")})

    def forward(self, student, teacher, batch, *, mask=None, **aux):
        due = "" if student.is_meta else Trouble.moment()  # the plan computes shapes, it trains nothing
        kind, _, at = os.environ.get("SABOTAGE", "").partition("@")
        if kind == "oom" and not student.is_meta and len(batch) > int(at):
            raise torch.OutOfMemoryError("planted: not enough memory")
        loss = (student - teacher).square().flatten(1).mean(1)
        return loss * float("nan") if due == "nan" else loss


class Nothing(StageKind):
    def run(self, context):
        Trouble.moment()
        return StageOutcome(metrics={"seen": float(len(context.student.sites()))})


class StackMetric(Metric):
    batches = 0

    def evaluate(self, request):
        values = {}
        batches = list(request.batches())
        for name, model in request.students.items():
            last = f"layers.{model.facts.layers - 1}.output"
            total = 0.0
            for batch in batches:
                want = torch.zeros(()) if request.teacher is None else request.teacher.collect(batch, {last})[last]
                total += float((want - model.collect(batch, {last})[last]).square().mean())
                StackMetric.batches += 1
                if os.environ.get("SABOTAGE") == f"evaluate@{self.batches}":
                    signal.raise_signal(signal.SIGTERM)
                request.progress(batch.units)
            values[name] = {"mse": total / max(len(batches), 1)}
        student = values.pop("student")
        teacher = {} if request.teacher is None else {"mse": 0.0}
        return Evaluation(
            "mse", False, "squared value", teacher, student, values, gated={"gain": -student["mse"]}, n=len(batches)
        )


@hookimpl
def xarch_stage_finished(stage):
    """Between two stages something can go wrong too."""
    Trouble.moment()


@hookimpl
def xarch_register(registry):
    me = __name__
    registry.family("stack", load=f"{me}:StackFamily", summary="stacks of layers")
    registry.source("stack", load=f"{me}:StackSource", summary="a stack of layers", produces="stack")
    registry.target("low", load=f"{me}:LowTarget", summary="low-rank stack", accepts=["stack"], produces="stack")
    registry.data("noise", load=f"{me}:NoiseData", summary="noise")
    registry.objective("sabotage", load=f"{me}:Sabotage", summary="an MSE that can fail")
    registry.stage("nothing", load=f"{me}:Nothing", summary="does nothing")
    registry.metric("stack_mse", load=f"{me}:StackMetric", summary="error of the last layer", accepts=["stack"])
