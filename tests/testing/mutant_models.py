"""Targets, sources and stages with one fault each, and right ones beside them; see ``mutant_plugin``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import torch

from tests.engine import stack_plugin as stack
from tests.testing import mutant_plugin
from tests.testing.mutant_plugin import name_of
from xarch import Initialisation, Options, StageKind, StageOutcome, hookimpl

# Where the family is loaded as a plugin's file, its classes are those of that module.
_loaded: Any = sys.modules.get("xarch_plugin_file_mutant_plugin", mutant_plugin)
KitFacts, KitTeacher = _loaded.KitFacts, _loaded.KitTeacher


class KitStudent(stack.StackStudent):
    family = "kit"


class RightTarget(stack.LowTarget):
    student: Any = KitStudent

    def build(self, facts, options, decisions, *, device):
        return self.student(facts, device)


class DropsTensors(RightTarget):
    """Copies one tensor of the teacher, and says nothing of the others."""

    def initialise(self, student, teacher):
        student.module.layers[0].b.data.copy_(teacher.weights()["0.0.bias"])
        return self.initialisation(student.facts, student)

    def initialisation(self, facts, student):
        own = [n for n, _ in student.module.named_parameters() if n != "layers.0.b"]
        return Initialisation(copied=("layers.0.b",), new=tuple(own), sources={"layers.0.b": ("0.0.bias",)})


class TrainsItsNeighbour(RightTarget):
    class student(KitStudent):
        def run_site(self, site, inputs, wanted, batch):
            values = super().run_site(site, inputs, wanted, batch)
            return {name: value + self.module.layers[1].b for name, value in values.items()}


class DeclaresOtherTaps(RightTarget):
    class student(KitStudent):
        def taps(self):
            return {name: replace(tap, shape={"D": tap.shape["D"] + 1}) for name, tap in super().taps().items()}


class NamesUnknownParameters(RightTarget):
    class student(KitStudent):
        def param_groups(self):
            return {**super().param_groups(), "heads": ["head.weight"]}


class KeepsStateOutside(RightTarget):
    class student(KitStudent):
        def run(self, batch, wanted, sink):
            shift = self.__dict__.setdefault("shift", torch.tensor(float(int.from_bytes(os.urandom(2), "big"))))
            super().run(batch, wanted, lambda name, value: sink(name, value + shift))


class ViewsOtherTaps(RightTarget):
    """Its view of the teacher has a tap of other sizes than it gives."""

    def view(self, teacher):
        class View(KitTeacher):
            def taps(self):
                return {n: replace(t, shape={"D": t.shape["D"] + 1}) for n, t in super().taps().items()}

        return View(teacher.facts)

    def view_taps(self, facts, options, taps):
        return self.view(KitTeacher(facts)).taps()


class RightSource(_loaded.KitSource):
    teacher: Any = KitTeacher

    def load(self, ref, options, *, device, dtype):
        return self.teacher(KitFacts(layers=int(ref)))

    def random(self, ref, options, *, device, seed):
        teacher = self.load(ref, options, device=device, dtype=torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for layer in teacher.module:
                layer[0].reset_parameters()
        teacher.fingerprint = f"random-{seed}"
        return teacher


class CountsWrong(RightSource):
    def describe(self, ref, options):
        return replace(super().describe(ref, options), parameters=1)


class NotFrozen(RightSource):
    def load(self, ref, options, *, device, dtype):
        teacher = super().load(ref, options, device=device, dtype=dtype)
        teacher.module.requires_grad_(True)
        return teacher


class GivesEverything(RightSource):
    class teacher(KitTeacher):
        def collect(self, batch, wanted):
            return super().collect(batch, set(self.taps()))


class IgnoresTheSeed(RightSource):
    def random(self, ref, options, *, device, seed):
        teacher = super().random(ref, options, device=device, seed=1)
        teacher.fingerprint = f"random-{seed}"
        return teacher


class RightStage(StageKind):
    def run(self, context):
        context.student.module.layers[0].b.data.add_(0.5)
        return StageOutcome(metrics={"added": 0.5})


class Anything(Options, extra="allow"):
    """Takes every option, known or not."""


class DependsOnChance(StageKind):
    """Two faults: chance that no seed decides, and options that nobody knows."""

    Options = Anything

    def run(self, context):
        context.student.module.layers[0].b.data.add_(int.from_bytes(os.urandom(2), "big") / 2**16)
        return StageOutcome()


TARGETS = (
    RightTarget,
    DropsTensors,
    TrainsItsNeighbour,
    DeclaresOtherTaps,
    NamesUnknownParameters,
    KeepsStateOutside,
    ViewsOtherTaps,
)
SOURCES = (RightSource, CountsWrong, NotFrozen, GivesEverything, IgnoresTheSeed)
STAGES = (RightStage, DependsOnChance)


@hookimpl
def xarch_register(registry):
    me = __name__
    for target in TARGETS:
        registry.target(name_of(target), load=f"{me}:{target.__name__}", accepts=["kit"], produces="kit")
    for source in SOURCES:
        registry.source(name_of(source), load=f"{me}:{source.__name__}", produces="kit")
    for stage in STAGES:
        registry.stage(name_of(stage), load=f"{me}:{stage.__name__}", summary="for tests of the kit")
