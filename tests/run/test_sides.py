"""Runs with several teachers, none, and students with operating points; what is loaded, judged, saved and gated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.stack_case import StackCase
from xarch.errors import PluginError, QualityError, UsageError

MATCH = {"student": "layers.2.output", "objective": "mse"}


def read(case: StackCase, name: str) -> Any:
    return json.loads((case.folder / "run" / name).read_text())


def test_a_student_of_its_own_without_a_teacher_becomes_one(stack: StackCase) -> None:
    """encdec W23: `xarch.load` gives a bare module; there was no public way to a student or a teacher."""
    import xarch

    run = stack.convert(
        teacher="none",
        teachers={"old": {"ref": "stack:3"}, "spare": {"ref": "stack:5", "weight": 2}},
        stages={"end": stack.stage(matches={"old": {**MATCH, "teacher": "old:layers.2.output"}})},
    )
    assert run.status["state"] == "done"
    saved = read(stack, "student/config.json")
    assert saved["teacher"] is None
    assert saved["built_from"] == {"family": "stack", "facts": {"layers": 3, "width": 8}}
    found = read(stack, "eval.json")
    assert found["teacher"] == {}
    student = xarch.load_student(run.path)
    assert isinstance(student, xarch.Student)
    assert not student.module.training
    assert torch.equal(student.module.layers[0].b, xarch.load(run.path).layers[0].b)
    assert xarch.load_teacher("stack:5").facts.layers == 5
    with pytest.raises(UsageError, match="unknown source 'stak'; did you mean 'stack'"):
        xarch.load_teacher("stak:5")


def test_random_weights_are_another_teacher(stack: StackCase) -> None:
    ends = {}
    for name, teacher in (("same", "layers.2.output"), ("random", "random:layers.2.output")):
        case = StackCase(stack.folder / name, stack.monkeypatch) if (stack.folder / name).mkdir() is None else stack
        case.convert(stages={"end": case.stage(matches={"m": {**MATCH, "teacher": teacher}}, units=256)})
        ends[name] = read(case, "eval.json")["student"]["mse"]
    assert ends["same"] < ends["random"]


def test_two_random_teachers_are_two(stack: StackCase) -> None:
    tap, losses = "layers.2.output", {}
    for name, second in (("same", "a"), ("other", "b")):
        case = StackCase(stack.folder / name, stack.monkeypatch) if (stack.folder / name).mkdir() is None else stack
        matches = {"one": {**MATCH, "teacher": f"a:{tap}"}, "two": {**MATCH, "teacher": f"{second}:{tap}"}}
        case.convert(
            teachers={"a": {"ref": "random"}, "b": {"ref": "random"}}, stages={"end": case.stage(matches=matches)}
        )
        first = json.loads((case.folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
        losses[name] = (first["match.one"], first["match.two"])
    assert losses["same"][0] == losses["same"][1]
    assert losses["other"][0] != losses["other"][1]


def test_the_target_gives_its_view_of_the_teacher_to_matches_and_metric(stack: StackCase) -> None:
    """encdec W8: a target could not adapt what the teacher gives."""
    stack.use(
        """
class View(stack.StackTeacher):
    def run(self, batch, wanted, sink):
        super().run(batch, wanted, lambda name, value: sink(name, value * 0))

class Zero(stack.LowTarget):
    def view(self, teacher): return View(teacher.facts)

@hookimpl
def xarch_register(registry): registry.target("zero", load=f"{__name__}:Zero", accepts=["stack"])
"""
    )
    stack.convert(student__target="zero", stages={"end": stack.stage(units=640, optimiser={"lr": 0.05})})
    assert read(stack, "eval.json")["student"]["mse"] < 0.01


VARIANTS = """
class Half(stack.StackStudent):
    def variants(self):
        return {"half": View(self)}

class View(xarch.TapModel):
    def __init__(self, student): self.student, self.module, self.facts = student, student.module, student.facts
    family = "stack"
    def taps(self): return self.student.taps()
    def run(self, batch, wanted, sink): self.student.run(batch, wanted, lambda n, v: sink(n, v / 2 + 1))

class Target(stack.LowTarget):
    def build(self, facts, options, decisions, *, device): return Half(facts, device)

@hookimpl
def xarch_register(registry): registry.target("half", load=f"{__name__}:Target", accepts=["stack"])
"""


def test_operating_points_are_judged_and_gated(stack: StackCase) -> None:
    """encdec W11: a student was one operating point."""
    stack.use(VARIANTS)
    with pytest.raises(QualityError, match=r"variants\.half\.mse is .*, wanted <= 0\.5"):
        stack.convert(student__target="half", gates={"variants.half.mse": {"max": 0.5}, "mse": {"max": 5}})
    found = read(stack, "eval.json")
    assert found["variants"]["half"]["mse"] > 0.5 > found["student"]["mse"]
    assert "half" not in found["baselines"]


COUNTING = """
class Counting(stack.StackStudent):
    passes, spends = 0, ("passes",)
    def run(self, batch, wanted, sink):
        super().run(batch, wanted, sink)
        if not self.module.training:
            self.passes += 1
    def spent(self):
        found, self.passes = {"passes": self.passes / 4} if self.passes else {}, 0
        return found

class Target(stack.LowTarget):
    def build(self, facts, options, decisions, *, device): return Counting(facts, device)

@hookimpl
def xarch_register(registry): registry.target("counting", load=f"{__name__}:Target", accepts=["stack"])
"""


def test_what_a_model_counts_of_its_own_work_is_a_figure_of_its_evaluation(stack: StackCase) -> None:
    stack.use(COUNTING)
    stack.convert(student__target="counting", gates={"passes": {"max": 0.5}})
    found = read(stack, "eval.json")
    # One batch of two samples; what ran before the evaluation does not count.
    assert found["student"]["passes"] == 0.25
    assert (found["units"]["passes"], found["directions"]["passes"]) == ("share", False)
    assert "passes" not in found["teacher"]


def test_a_gate_on_a_figure_that_nobody_measures_is_refused_before_training(stack: StackCase) -> None:
    with pytest.raises(UsageError, match=r"gates\.mze: no such figure; did you mean 'mse'"):
        stack.convert(gates={"mze": {"max": 1}})
    assert not list((stack.folder / "run").glob("stages/*"))


BROKEN_METRIC = """
class Broken(xarch.Metric):
    def evaluate(self, request): raise KeyError("input_ids")

@hookimpl
def xarch_register(registry): registry.metric("broken", load=f"{__name__}:Broken", accepts=["stack"])
"""


def test_the_metric_is_tried_before_the_first_stage(stack: StackCase) -> None:
    """encdec W3: a metric failed only after all training."""
    stack.use(BROKEN_METRIC)
    with pytest.raises(PluginError, match=r"plugin 'own0' .* metric 'broken', evaluate: KeyError: 'input_ids'"):
        stack.convert(evaluate__metric="broken", evaluate__baseline=False)
    assert not list((stack.folder / "run").glob("stages/*"))
    assert read(stack, "status.json")["state"] == "failed"


def test_trying_the_metric_leaves_no_trace_in_the_training(stack: StackCase) -> None:
    stack.use(
        """
class Drawing(stack.StackMetric):
    def evaluate(self, request):
        torch.rand(3)
        return super().evaluate(request)

@hookimpl
def xarch_register(registry): registry.metric("drawing", load=f"{__name__}:Drawing", accepts=["stack"])
"""
    )
    rows = []
    for metric in ("stack_mse", "drawing"):
        (stack.folder / metric).mkdir()
        StackCase.convert(stack, evaluate__metric=metric, evaluate__baseline=False)
        rows.append((stack.folder / "run" / "metrics.jsonl").read_bytes())
        (stack.folder / "run").rename(stack.folder / metric / "run")
    assert rows[0] == rows[1]


def test_an_impossible_gate_of_a_hook_is_missed_in_run_and_report(stack: StackCase) -> None:
    """house A2c: plan.gates fed the report, plan.config.gates the engine; the run ended done, its report "missed"."""
    stack.use(
        """
from xarch.config.schema import Gate

@hookimpl
def xarch_modify_plan(plan): plan.config.gates["mse"] = Gate(max=1e-12)
"""
    )
    with pytest.raises(QualityError, match=r"mse is .*, wanted <= 1e-12") as caught:
        stack.convert(gates={"mse": {"max": 5}})
    assert caught.value.exit_code == 7
    assert read(stack, "status.json")["state"] == "failed"
    page = (stack.folder / "run" / "report.md").read_text()
    assert "missed" in page
    assert "passes its quality gate" not in page


def test_a_hook_that_contradicts_the_plan_is_refused(stack: StackCase) -> None:
    stack.use("@hookimpl\ndef xarch_modify_plan(plan): plan.config.export.profiles.append('cpu')")
    with pytest.raises(PluginError, match=r"xarch_modify_plan of own0 .* exports are planned for \[\]"):
        stack.plan()


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("load", "class S(stack.StackSource):\n    def load(self, *a, **k): raise KeyError('own')"),
        ("processor", "class T(stack.LowTarget):\n    def processor(self, teacher): raise KeyError('own')"),
        ("view", "class T(stack.LowTarget):\n    def view(self, teacher): raise KeyError('own')"),
        ("initialise", "class T(stack.LowTarget):\n    def initialise(self, s, t): raise KeyError('own')"),
        ("open", "class D(stack.NoiseData):\n    def open(self, request): raise KeyError('own')"),
        (
            "stream",
            """
class D(stack.NoiseData):
    def open(self, request):
        made = super().open(request)
        made.__class__ = N
        return made
class N(stack.Noise):
    def __next__(self): raise KeyError('own')""",
        ),
        (
            "finish",
            """
class T(stack.LowTarget):
    def build(self, facts, options, decisions, *, device): return St(facts, device)
class St(stack.StackStudent):
    def finish(self): raise KeyError('own')""",
        ),
        (
            "a student that runs",
            """
class T(stack.LowTarget):
    def build(self, facts, options, decisions, *, device): return St(facts, device)
class St(stack.StackStudent):
    def run(self, batch, wanted, sink): raise KeyError('own')""",
        ),
        (
            "export graphs",
            """
class T(stack.LowTarget):
    def export_graphs(self, student, profile, options):
        if student.module.layers[0].b.device.type != "meta" and student.module.layers[0].b.any():
            raise KeyError('own')
        return []""",
        ),
    ],
)
def test_errors_of_adapters_and_their_objects_are_the_plugins(stack: StackCase, what: str, body: str) -> None:
    """house A5, vision 2.9: they ended as "xarch failed unexpectedly" or as an error of plugin 'core'."""
    kinds = {"S": ("source", "own:3"), "T": ("target", "own"), "D": ("data", "own:8")}
    letter = body.split("class ")[1][0]
    kind, name = kinds[letter]
    extra = {"S": "produces='stack'", "T": "accepts=['stack']", "D": ""}[letter]
    stack.use(
        body
        + "\n@hookimpl\ndef xarch_register(registry):"
        + f"\n    registry.{kind}('own', load=f'{{__name__}}:{letter}', {extra})\n"
    )
    key = {"S": "teacher", "T": "student__target", "D": "data__ref"}[letter]
    with pytest.raises(PluginError, match=r"plugin 'own0' .*KeyError: 'own'"):
        stack.convert(**{key: name, "export__profiles": ["cpu"], "evaluate__baseline": False})


def test_targets_of_several_families_can_be_loaded_again(stack: StackCase) -> None:
    """encdec W19: facts of a student's folder were read as one class a target."""
    import xarch

    stack.use(
        """
from dataclasses import dataclass

@dataclass(frozen=True)
class PileFacts(stack.StackFacts):
    pile: bool = True

class Pile(stack.StackFamily):
    Facts = PileFacts

class Source(stack.StackSource):
    def describe(self, ref, options):
        facts = PileFacts(layers=int(ref))
        return xarch.SourceInfo("pile", facts, 1, 0, "pile")
    def load(self, ref, options, *, device, dtype):
        teacher = stack.StackTeacher(PileFacts(layers=int(ref)))
        teacher.family = "pile"
        return teacher

class Student(stack.StackStudent):
    def __init__(self, facts, device):
        super().__init__(stack.StackFacts(facts.layers, facts.width), device)
        self.piled = getattr(facts, "pile", False)

class Target(stack.LowTarget):
    def build(self, facts, options, decisions, *, device): return Student(facts, device)

@hookimpl
def xarch_register(registry):
    registry.family("pile", load=f"{__name__}:Pile")
    registry.source("pile", load=f"{__name__}:Source", produces="pile")
    registry.target("either", load=f"{__name__}:Target", accepts=["stack", "pile"], produces="stack")
"""
    )
    run = stack.convert(teacher="pile:3", student__target="either")
    assert xarch.load_student(run.path).piled is True
    assert read(stack, "student/config.json")["built_from"]["family"] == "pile"


def test_configurations_are_plain_data_too(stack: StackCase) -> None:
    """vision 2.19: ``xarch.convert`` took no dict."""
    import xarch

    given = {
        "teacher": "stack:3",
        "student": {"target": "low"},
        "data": {"ref": "noise:8"},
        "export": {"profiles": []},
        "runtime": {"device": "cpu", "threads": 1, "tensorboard": False},
        "stages": {"end": stack.stage()},
    }
    made = xarch.plan(given, sets=["seed=4"])
    assert made.config.seed == 4
    assert made.provenance["teacher"] == "given"
    run = xarch.convert(given, out=Path(stack.folder) / "run")
    assert run.status["state"] == "done"
