"""What a plan proves about teachers, data, metric and initialisation before a weight is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from tests.run.conftest import stack  # noqa: F401
from tests.run.stack_case import StackCase
from xarch.errors import PlanError, PluginError, UsageError


@pytest.fixture
def case(stack: StackCase) -> StackCase:  # noqa: F811
    return stack


HIJACKER = """
class Any(xarch.Metric):
    def evaluate(self, request): raise AssertionError("not asked for")

@hookimpl
def xarch_register(registry):
    registry.metric("a_metric", load=f"{__name__}:Any", accepts=["stack"])
    registry.metric("far", load=f"{__name__}:Any", accepts=["elsewhere"])
    registry.family("elsewhere", load=f"{__name__}:Any")
"""


def test_a_registered_metric_is_not_the_default_of_others(case: StackCase) -> None:
    """house A3, encdec W3: the alphabetically first metric judged every decoder."""
    case.use(HIJACKER)
    assert case.plan().metric == "stack_mse"
    assert case.plan(evaluate__metric="a_metric").metric == "a_metric"


def test_a_metric_must_be_for_students_of_this_family(case: StackCase) -> None:
    """encdec W3: a metric of another family was planned and failed after all training."""
    case.use(HIJACKER)
    with pytest.raises(PlanError, match=r"'far' is for elsewhere; the student is of family 'stack'") as caught:
        case.plan(evaluate__metric="far")
    assert "stack_mse" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"evaluate\.metric_options\.depth"):
        case.plan(evaluate__metric_options={"depth": 2})


def test_a_target_can_name_the_metric_of_its_students(case: StackCase) -> None:
    case.use(
        HIJACKER
        + """
class Judged(stack.LowTarget):
    def metric(self, facts, options): return "a_metric"

@hookimpl(specname="xarch_register")
def xarch_register_judged(registry):
    registry.target("judged", load=f"{__name__}:Judged", accepts=["stack"])
"""
    )
    assert case.plan(student__target="judged").metric == "a_metric"


def test_data_must_fit_the_models(case: StackCase) -> None:
    """vision 2.10: a teacher of 5 classes on data of 10 passed the plan."""
    with pytest.raises(PlanError, match=r"the teacher does not fit the data 'noise': it has rows of 6 numbers"):
        case.plan(data__ref="noise:6")


def test_data_must_have_the_tensors_that_models_read(case: StackCase) -> None:
    case.use(
        """
class Other(stack.NoiseData):
    key, layout = "y", "BLD"
    def describe(self, request):
        return xarch.DataInfo("other", "o", "row", tensors={self.key: xarch.TensorInfo(self.layout, {"D": 8})})

class Flat(Other):
    key, layout = "x", "BD"

class Views(stack.NoiseData):
    def describe(self, request):
        tensors = {f"x@{side}": xarch.TensorInfo("BLD", {"D": 8}) for side in ("teacher", "student")}
        return xarch.DataInfo("views", "v", "row", tensors={**tensors, "x": xarch.TensorInfo("BCHW", {"D": 8})})

@hookimpl
def xarch_register(registry):
    for name in ("Other", "Flat", "Views"):
        registry.data(name.lower(), load=f"{__name__}:{name}")
"""
    )
    with pytest.raises(PlanError, match=r"the teacher reads the tensor 'x' .family stack., which the data 'other'"):
        case.plan(data__ref="other:8")
    with pytest.raises(PlanError, match=r"reads 'x' as BLD .* give BD"):
        case.plan(data__ref="flat:8")
    assert case.plan(data__ref="views:8").stages


DESCRIBED = """
class Source(stack.StackSource):
    asked = []
    def describe(self, ref, options):
        if ref == "bad":
            raise ZeroDivisionError("my own bug")
        self.asked.append(ref)
        return super().describe(ref, options)

class Target(stack.LowTarget):
    def recipe(self, facts, options): return "usual"

class Secret(stack.LowTarget):
    def recipe(self, facts, options): return "hidden"

@hookimpl
def xarch_register(registry):
    registry.source("counted", load=f"{__name__}:Source", produces="stack")
    registry.target("given", load=f"{__name__}:Target", accepts=["stack"], recipes=["usual"])
    registry.target("secret", load=f"{__name__}:Secret", accepts=["stack"], recipes=["usual"])
    registry.target("bare", load=f"{__name__}:Bare", accepts=["stack"])
    registry.recipe("usual", load=f"{__name__}:usual.yaml")

class Bare(stack.LowTarget):
    def recipe(self, facts, options): return ""
"""


def default(case: StackCase, target: str, teacher: str = "counted:3") -> Any:
    """A plan with the target's own recipe."""
    from xarch.api import plan

    given = case.configuration(teacher=teacher, student__target=target)
    del given["stages"]
    (case.folder / "usual.yaml").write_text(
        "stages:\n  end:\n    scope: global\n    units: 64\n    batch: 4\n    trains: {all: {}}\n"
        "    matches: {last: {student: layers.2.output, objective: mse}}\n"
    )
    return plan(overrides=given)


def test_a_teacher_is_described_once(case: StackCase) -> None:
    """house 1.5: a teacher was described twice for every default recipe."""
    from xarch.registry.loader import get_registry

    case.use(DESCRIBED)
    made = default(case, "given")
    assert [s.name for s in made.stages] == ["end"]
    registry = get_registry()
    assert registry.resolve(registry.get("source", "counted")).asked == ["3"]


def test_a_recipe_that_lists_do_not_show_is_refused(case: StackCase) -> None:
    """house 1.2: lists guessed a recipe that the target did not run."""
    case.use(DESCRIBED)
    with pytest.raises(PluginError, match=r"uses the recipe 'hidden', but is registered with usual"):
        default(case, "secret")
    with pytest.raises(UsageError, match=r"target 'bare' has no default recipe") as caught:
        default(case, "bare")
    assert "--method NAME" in str(caught.value.hint)


def test_an_error_in_describe_is_the_plugins(case: StackCase) -> None:
    """house A5: it ended as "xarch failed unexpectedly" where the default recipe was looked up, and in inspect."""
    from xarch.run.inspection import inspect

    case.use(DESCRIBED)
    for attempt in (
        lambda: default(case, "given", "counted:bad"),
        lambda: inspect("counted:bad"),
        lambda: case.plan(teacher="counted:bad"),
    ):
        with pytest.raises(PluginError, match=r"plugin 'own0' .* source 'counted', describe: ZeroDivisionError: my"):
            attempt()


@pytest.mark.parametrize(
    ("hook", "body"),
    [
        ("export_graphs", "def export_graphs(self, student, profile, options): raise KeyError('own')"),
        ("metric", "def metric(self, facts, options): raise KeyError('own')"),
        ("view_taps", "def view_taps(self, facts, options, taps): raise KeyError('own')"),
        ("initialisation", "def initialisation(self, facts, student): raise KeyError('own')"),
        (
            "taps of the student",
            """def build(self, facts, options, decisions, *, device):
        made = super().build(facts, options, decisions, device=device)
        made.taps = lambda: {}['own']
        return made""",
        ),
        (
            "parameter groups",
            """def build(self, facts, options, decisions, *, device):
        made = super().build(facts, options, decisions, device=device)
        made.param_groups = lambda: {}['own']
        return made""",
        ),
    ],
)
def test_a_targets_error_while_planning_is_the_plugins(case: StackCase, hook: str, body: str) -> None:
    """house A5, vision 2.9: errors of objects that adapters return were xarch's, or those of plugin 'core'."""
    case.use(
        f"""
class Broken(stack.LowTarget):
    {body}

@hookimpl
def xarch_register(registry):
    registry.target("broken", load=f"{{__name__}}:Broken", accepts=["stack"])
"""
    )
    with pytest.raises(PluginError, match=r"plugin 'own0' .*KeyError: 'own'"):
        case.plan(student__target="broken", export__profiles=["cpu"])


def test_facts_that_lack_something_name_the_source(case: StackCase) -> None:
    """vision 2.11: a check depended on an undocumented method of the facts."""
    case.use(
        """
class Bare:
    def to_json(self): return {}

class Source(stack.StackSource):
    def describe(self, ref, options):
        return xarch.SourceInfo("stack", Bare(), 1, 1, "bare")

@hookimpl
def xarch_register(registry): registry.source("bare", load=f"{__name__}:Source", produces="stack")
"""
    )
    with pytest.raises(PluginError, match=r"facts of the family 'stack' must be StackFacts, got Bare"):
        case.plan(teacher="bare:3")


def test_an_unknown_family_names_the_nearest(case: StackCase) -> None:
    case.use(
        """
class Source(stack.StackSource):
    def describe(self, ref, options):
        return xarch.SourceInfo("stak", stack.StackFacts(), 1, 1, "typo")

@hookimpl
def xarch_register(registry): registry.source("typo", load=f"{__name__}:Source", produces="*")
"""
    )
    with pytest.raises(UsageError, match=r"unknown family 'stak'; did you mean 'stack'"):
        case.plan(teacher="typo:3")


COPYING = """
class Facts(stack.StackFacts):
    pass

class Source(stack.StackSource):
    tell = True
    def describe(self, ref, options):
        info = super().describe(ref, options)
        names = tuple(stack.StackTeacher(info.facts).weights())
        return xarch.SourceInfo(
            info.family, info.facts, info.parameters, 0, "gated", weights=(*names, "0.router") if self.tell else None
        )
    def load(self, ref, options, *, device, dtype):
        teacher = super().load(ref, options, device=device, dtype=dtype)
        plain = teacher.weights
        teacher.weights = lambda: {**plain(), "0.router": torch.zeros(1)}
        return teacher

class Silent(Source):
    tell = False

class Copies(stack.LowTarget):
    unused = ()
    def initialisation(self, facts, student):
        biases = [f"layers.{i}.b" for i in range(facts.layers)]
        others = [n for n, _ in student.module.named_parameters() if n not in biases]
        unused = tuple(f"{i}.0.weight" for i in range(facts.layers)) + self.unused
        sources = {b: (f"{i}.0.bias",) for i, b in enumerate(biases)}
        return xarch.Initialisation(tuple(biases), (), tuple(others), unused, sources)

class Knows(Copies):
    unused = ("0.router",)

@hookimpl
def xarch_register(registry):
    registry.source("gated", load=f"{__name__}:Source", produces="stack")
    registry.source("silent", load=f"{__name__}:Silent", produces="stack")
    registry.target("copies", load=f"{__name__}:Copies", accepts=["stack"])
    registry.target("knows", load=f"{__name__}:Knows", accepts=["stack"])
"""


def test_a_tensor_of_the_teacher_that_nothing_reads_is_refused(case: StackCase) -> None:
    """encdec W5: routers of a run: teacher were dropped without a word."""
    case.use(COPYING)
    with pytest.raises(PlanError, match=r"1 teacher tensors would be dropped: .* 0.router"):
        case.plan(teacher="gated:3", student__target="copies")
    made = case.plan(teacher="gated:3", student__target="knows")
    states = {c.name: (c.state, c.detail) for c in made.checks}
    assert states["teacher's weights"] == ("ok", "all 7 are accounted for")
    assert made.student.unused[-1] == "0.router"
    assert "4 of the teacher unused" in states["initialisation"][1]


def test_what_headers_do_not_tell_is_proven_when_the_weights_are_there(case: StackCase) -> None:
    case.use(COPYING)
    made = case.plan(teacher="silent:3", student__target="copies")
    states = {c.name: c.state for c in made.checks}
    assert states["teacher's weights"] == "not checked"
    with pytest.raises(PlanError, match=r"no student tensor reads 0\.router"):
        case.convert(teacher="silent:3", student__target="copies")
    assert not list((case.folder / "run").glob("stages/*"))


def test_nothing_that_was_not_checked_is_ok(case: StackCase) -> None:
    """vision 2.11: "ok: not tried"."""
    made = case.plan(export__profiles=["cpu"])
    [check] = [c for c in made.checks if c.name == "export cpu"]
    assert (check.state, check.detail) == ("not checked", "the target exports no graphs")


def test_export_options_are_validated(case: StackCase) -> None:
    """encdec W11: ``--set export.options.foo=1`` passed the plan."""
    with pytest.raises(UsageError, match=r"export\.options\.foo"):
        case.plan(export__profiles=["cpu"], export__options={"foo": 1})


def test_a_gate_without_a_metric_is_refused(case: StackCase) -> None:
    case.use(
        """
class Plain(stack.StackFamily):
    metric = ""

class Student(stack.StackStudent):
    family = "plain"

class Target(stack.LowTarget):
    def build(self, facts, options, decisions, *, device): return Student(facts, device)

@hookimpl
def xarch_register(registry):
    registry.family("plain", load=f"{__name__}:Plain")
    registry.target("unjudged", load=f"{__name__}:Target", accepts=["stack"], produces="plain")
"""
    )
    assert case.plan(student__target="unjudged").metric is None
    with pytest.raises(UsageError, match=r"gates: the family 'plain' has no default metric"):
        case.plan(student__target="unjudged", gates={"mse": {"max": 1}})


def test_there_may_be_no_teacher_and_several(case: StackCase) -> None:
    match = {"student": "layers.2.output", "objective": "mse"}
    matches = {
        "old": {**match, "teacher": "old:layers.2.output"},
        "mean": {**match, "teacher": "mean:layers.2.output"},
        "none": {**match, "teacher": "random:layers.2.output"},
    }
    teachers = {"old": {"ref": "stack:5"}, "mean": {"ref": "ema"}}
    stage = case.stage(matches={k: matches[k] for k in ("old", "mean")}, ema=0.9)
    made = case.plan(teacher="none", teachers=teachers, stages={"end": stage})
    assert made.teacher is None
    assert {name: t.resolved for name, t in made.teachers.items()} == {"old": "stack:5", "mean": "ema"}
    assert made.student.built_from == {"family": "stack", "facts": {"layers": 3, "width": 8}}
    with pytest.raises((PlanError, UsageError), match=r"random"):
        case.plan(teacher="none", teachers=teachers, stages={"end": case.stage(matches=matches, ema=0.9)})
    with pytest.raises(UsageError, match=r"no teacher given") as caught:
        case.plan(teacher="")
    assert "--teacher none" in str(caught.value.hint)


def test_settings_of_stages_stand_once(case: StackCase) -> None:
    """house 1.5: two truths, plan.stages and plan.config.stages."""
    from xarch.planning.plan import Plan

    made = case.plan(gates={"mse": {"max": 5}})
    stored = made.model_dump(mode="json")
    assert "config" not in stored["stages"][0]
    assert "gates" not in stored
    again = Plan.model_validate(stored)
    assert again.stages[0].config is again.config.stages["end"]
    stored["config"]["stages"]["end"]["optimiser"]["lr"] = 0.5
    assert Plan.model_validate(stored).stages[0].config.optimiser.lr == 0.5


def test_the_estimate_counts_more_than_stages(case: StackCase) -> None:
    made = case.plan(evaluate__curve={"samples": 1, "every": 2})
    parts = made.estimates.parts
    assert set(parts) == {"stages", "evaluation", "export", "bench"}
    assert parts["evaluation"] > 0
    assert made.estimates.seconds == pytest.approx(sum(parts.values()))
    alone = case.plan(evaluate__baseline=False).estimates.parts["evaluation"]
    assert parts["evaluation"] > alone


def test_the_estimate_counts_controls(case: StackCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same rate of products: measured anew for every plan, it depends on what else runs."""
    from xarch.contracts.family import Family
    from xarch.planning.stages import StagePlanner

    monkeypatch.setattr(StagePlanner, "rate", 1e9)

    def evaluation(**settings: Any) -> float:
        return case.plan(evaluate__baseline=False, **settings).estimates.parts["evaluation"]

    none = evaluation()
    monkeypatch.setattr(Family, "control_names", lambda self, student: ("window", "eviction"))
    assert evaluation() > 1.5 * none
    assert evaluation(evaluate__controls=False) == pytest.approx(none)


def test_gates_on_controls_need_controls(case: StackCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a run ended without a student, after all of its stages."""
    from xarch.contracts.family import Family

    gates = {"mse_to_control": {"max": 0.9}}
    with pytest.raises(UsageError, match=r"gates\.mse_to_control: this figure will not be measured") as caught:
        case.plan(gates=gates)
    assert "no control" in (caught.value.hint or "")
    monkeypatch.setattr(Family, "control_names", lambda self, student: ("window",))
    assert case.plan(gates=gates).config.gates
    with pytest.raises(UsageError, match="will not be measured") as caught:
        case.plan(gates=gates, evaluate__controls=False)
    assert "evaluate.controls=true" in (caught.value.hint or "")
