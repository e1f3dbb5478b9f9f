"""Pairs: references, layer maps, joins, ensembles, masks and connectors, each proven before a weight is loaded."""

from __future__ import annotations

from typing import Any

import pluggy
import pytest
import torch
from torch import nn

from xarch.builtin import xarch_register
from xarch.config.schema import Stage
from xarch.contracts.data import TensorInfo
from xarch.contracts.local import LocalStudent, Site
from xarch.contracts.objective import MatchContext, Objective
from xarch.contracts.options import Options
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError
from xarch.matching.pairing import Masks, Pair, pair_stage
from xarch.matching.references import MissingTap
from xarch.registry.declare import Declarations
from xarch.registry.registry import Registry

TENSORS = {
    "x": TensorInfo("BLD", {"D": 4}),
    "mask": TensorInfo("BL"),
    "labels": TensorInfo("B"),
    "labels@student": TensorInfo("BK", {"K": 5}),
    "only@teacher": TensorInfo("B"),
}


class AnyOptions(Options):
    gamma: float = 1.0


class Anything(Objective):
    """Takes any layouts, several taps and several teachers."""

    Options = AnyOptions
    accepts = frozenset({("*", "*")})
    joins = ensembles = True
    aux = frozenset({"h", "t", "y"})
    built_on = ""

    def __init__(self, *sides: Any) -> None:
        super().__init__(*sides)
        Anything.built_on = torch.empty(1).device.type

    def forward(self, student, teacher, batch, *, mask=None, **aux):  # type: ignore[no-untyped-def]
        raise AssertionError("never run while planning")


class One(Anything):
    """One tap against one teacher; compares the samples of a batch."""

    joins = ensembles = False
    couples = "batch"


def tap(name: str, layout: str = "BLD", **shape: int) -> Tap:
    return Tap(name, "hidden", layout, shape or {"D": 4})


def stack(layers: int, place: str = "blocks") -> dict[str, Tap]:
    found = [tap(f"{place}.{i}.{leaf}") for i in range(layers) for leaf in ("input", "output")]
    return {t.name: t for t in [*found, tap("logits", "BK", K=5)]}


class Half(LocalStudent):
    """Half as many layers as its teacher; its sites are fed with every second one's input."""

    def __init__(self, layers: int = 3, teacher: int = 6, maps: bool = False, place: str = "blocks") -> None:
        self.module, self.layers, self.every, self.maps, self.place = (
            nn.Module(),
            layers,
            teacher // layers,
            maps,
            place,
        )

    def taps(self) -> dict[str, Tap]:
        return stack(self.layers, self.place)

    def layer_map(self) -> dict[int, int]:
        return {j: self.every * j + self.every - 1 for j in range(self.layers)} if self.maps else {}

    def sites(self) -> dict[str, Site]:
        return {
            f"blocks.{j}": Site(
                f"blocks.{j}", {"input": f"blocks.{self.every * j}.input"}, {"output": tap(f"blocks.{j}.output")}
            )
            for j in range(self.layers)
        }

    def run(self, batch: Any, wanted: Any, sink: Any) -> None: ...

    def run_site(self, site: str, inputs: Any, wanted: Any, batch: Any) -> dict[str, Any]:
        return {}

    def param_groups(self) -> dict[str, list[str]]:
        return {}


@pytest.fixture(scope="module")
def registry() -> Registry:
    declared = Declarations("core")
    xarch_register(declared)
    declared.objective("any", load=f"{__name__}:Anything")
    declared.objective("one", load=f"{__name__}:One")
    made = Registry(pluggy.PluginManager("xarch"), [], declared.specs)
    made._resolved |= {f"objective core:{n} {__name__}:{c.__name__}": c for n, c in (("any", Anything), ("one", One))}
    return made


@pytest.fixture
def pair(registry: Registry):  # type: ignore[no-untyped-def]
    """``pair(match, …)`` gives the pairs of a stage with this one match."""

    def make(match: dict[str, Any], *, student: Any = None, teachers: Any = None, mask: str = "mask", **stage: Any):  # type: ignore[no-untyped-def]
        taps = {"": stack(6)} if teachers is None else teachers
        settings = Stage.model_validate(
            {"scope": "global", "matches": {"m": {"objective": "any", **match}}, "trains": {"all": {}}, **stage}
        )
        return pair_stage(
            "s",
            settings,
            student=student or Half(),
            teachers=taps,
            tensors=TENSORS,
            mask=mask,
            registry=registry,
            context=MatchContext(),
        )

    return make


def rights(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(next(iter(p.student)), str(p.right[""])) for p in pairs]


def test_a_local_site_meets_the_layer_it_is_fed_from(pair) -> None:  # type: ignore[no-untyped-def]
    """house A1: site blocks.1, fed blocks.2.input, was matched to blocks.1.output."""
    found = pair({"student": "output", "objective": "mse"}, scope="local")
    assert [(p.site, str(p.right[""])) for p in found] == [
        ("blocks.0", "blocks.0.output"),
        ("blocks.1", "blocks.2.output"),
        ("blocks.2", "blocks.4.output"),
    ]
    assert [p.label for p in found] == ["m", "m", "m"]
    by_layer = pair({"student": "output", "teacher": "blocks.{i}.output"}, scope="local")
    assert [str(p.right[""]) for p in by_layer] == [str(p.right[""]) for p in found]


def test_a_site_may_name_what_its_taps_stand_for(pair) -> None:  # type: ignore[no-untyped-def]
    """encdec W14: two sites in one block, whose names are not those of the teacher's places."""

    class Two(Half):
        def sites(self) -> dict[str, Site]:
            names = {"blocks.0.mlp": "blocks.0.output", "blocks.0.mixer": "blocks.0.input"}
            return {n: Site(n, {"x": "blocks.0.input"}, {"out": tap(n)}, {"out": t}) for n, t in names.items()}

    found = pair({"student": "out"}, student=Two(), scope="local")
    assert [str(p.right[""]) for p in found] == ["blocks.0.output", "blocks.0.input"]


@pytest.mark.parametrize(
    ("how", "layers"),
    [("even", [1, 3, 5]), ("last", [3, 4, 5]), ({0: 1, 2: 4}, [1, 4]), ("target", [1, 3, 5])],
)
def test_layer_maps(pair, how: Any, layers: list[int]) -> None:  # type: ignore[no-untyped-def]
    """house 1.1, encdec W9: layers of another depth are paired by a map instead of by equal numbers."""
    student = Half(maps=how == "target")
    for match in (
        {"student": "blocks.{j}.output", "teacher": "blocks.{i}.output"},
        {"student": "blocks.*.output", "teacher": "same"},
    ):
        found = pair({**match, "map": how}, student=student)
        assert [str(p.right[""]) for p in found] == [f"blocks.{i}.output" for i in layers]
    assert found[0].label == "m.blocks.0.output"


def test_depths_that_differ_need_a_map(pair) -> None:  # type: ignore[no-untyped-def]
    """house 1.1: equal shapes made a wrong pair look proven."""
    for match in ({"student": "blocks.{j}.output", "teacher": "blocks.{i}.output"}, {"student": "blocks.*.output"}):
        with pytest.raises(PlanError, match="3 such layers, the teacher 6") as caught:
            pair(match)
        assert "map: even" in str(caught.value.hint)
    assert len(pair({"student": "blocks.*.output"}, student=Half(6, 6))) == 6


def test_other_places_follow_the_map(pair) -> None:  # type: ignore[no-untyped-def]
    """encdec W9: decoder.j ← blocks.i of any depth and split."""
    student = Half(place="decoder", maps=True)
    found = pair({"student": "decoder.{j}.output", "teacher": "blocks.{i}.output", "map": "target"}, student=student)
    assert rights(found) == [(f"decoder.{j}.output", f"blocks.{2 * j + 1}.output") for j in range(3)]


def test_counterparts_are_what_same_means(pair) -> None:  # type: ignore[no-untyped-def]
    class Named(Half):
        def counterparts(self) -> dict[str, str]:
            return {"blocks.0.output": "blocks.5.output"}

    assert rights(pair({"student": "blocks.0.output"}, student=Named())) == [("blocks.0.output", "blocks.5.output")]


def test_the_deepest_layer_of_either_side(pair) -> None:  # type: ignore[no-untyped-def]
    found = pair({"student": "blocks.{last}.output", "teacher": "blocks.{last}.output"})
    assert rights(found) == [("blocks.2.output", "blocks.5.output")]


def test_a_layer_that_does_not_exist_is_named(pair) -> None:  # type: ignore[no-untyped-def]
    match = {"student": "blocks.{j}.output", "teacher": "blocks.{i}.output"}
    with pytest.raises(PlanError, match="the teacher has no layer 6"):
        pair({**match, "map": {0: 6}})
    with pytest.raises(PlanError, match="the student has no layer 3"):
        pair({**match, "map": {3: 5}})
    with pytest.raises(UsageError, match="local stage"):
        pair({"student": "output", "map": "even"}, scope="local")


@pytest.mark.parametrize(
    ("teacher", "seen"),
    [
        ("student:logits", ("student", "logits")),
        ("ema:logits", ("ema", "logits")),
        ("self:blocks.{j}.input", ("self", "blocks.1.input")),
        ("random:blocks.0.input", ("random", "blocks.0.input")),
        ("b:blocks.0.input", ("b", "blocks.0.input")),
        ("batch:labels", ("batch", "labels")),
    ],
)
def test_references(pair, teacher: str, seen: tuple[str, str]) -> None:  # type: ignore[no-untyped-def]
    """house A2: the right side could be nothing but the one teacher."""
    (found,) = pair({"student": "blocks.1.output", "teacher": teacher}, teachers={"": stack(6), "b": stack(2)})
    right = found.right[""]
    assert (right.model, right.name) == seen


def test_a_view_of_the_student_resolves_the_name(pair) -> None:  # type: ignore[no-untyped-def]
    (found,) = pair({"student": "logits", "teacher": "batch:labels"})
    assert found.right[""].tap.layout == "BK"
    with pytest.raises(PlanError, match="have no tensor 'only'"):
        pair({"student": "logits", "teacher": "batch:only"})


def test_batch_keys_are_proven(pair) -> None:  # type: ignore[no-untyped-def]
    """house A2a, vision 2.10: ``batch:nope`` passed the plan and died in step 1."""
    with pytest.raises(PlanError, match="batches have no tensor 'labelz'") as caught:
        pair({"student": "logits", "teacher": "batch:labelz"})
    assert "labels" in str(caught.value.hint)
    with pytest.raises(PlanError, match="batches have no tensor 'nope'"):
        pair({"student": "logits", "aux": {"y": "batch:nope"}})
    with pytest.raises(PlanError, match=r"student logits.* x \(BLD\)"):
        pair({"student": "logits", "teacher": "batch:x", "objective": "mse"})


def test_a_run_without_a_teacher_says_so(pair) -> None:  # type: ignore[no-untyped-def]
    for teacher in ("same", "logits", "random:logits"):
        with pytest.raises(PlanError, match="teacher: none"):
            pair({"student": "logits", "teacher": teacher}, teachers={})
    assert pair({"student": "logits", "teacher": "ema:logits"}, teachers={})


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("techer:logits", "names the model 'techer'"),
        ("a:b:c", "is not a reference"),
        ("blocks.{k}.output", r"'\{k\}' is not a placeholder"),
        ("blocks.{i.output", "is not a placeholder"),
        ("student:blocks.{i}.output", r"\{i\} denotes a teacher layer"),
        ("blocks.*.output", "may match several taps"),
        ("logitz", "the teacher has no tap 'logitz'"),
        ("student:logitz", "the student has no tap 'logitz'"),
    ],
)
def test_wrong_references(pair, teacher: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((UsageError, PlanError), match=message) as caught:
        pair({"student": "blocks.0.output", "teacher": teacher, "map": "even"}, teachers={"": stack(6), "teacher2": {}})
    assert caught.value.hint


def test_a_missing_tap_is_told_apart_so_that_an_optional_stage_can_be_left_out(pair) -> None:  # type: ignore[no-untyped-def]
    for match in ({"student": "nope"}, {"student": "logits", "teacher": "nope"}):
        with pytest.raises(MissingTap):
            pair(match)


def test_several_student_taps_together(pair) -> None:  # type: ignore[no-untyped-def]
    """vision 2.16, encdec W13: an objective saw one student tap."""
    (found,) = pair({"student": ["blocks.0.output", "blocks.2.*"], "teacher": None, "join": True})
    assert list(found.student) == ["blocks.0.output", "blocks.2.input", "blocks.2.output"]
    assert (found.right, found.label, found.joined) == ({}, "m", True)
    (same,) = pair({"student": "blocks.*.output", "join": True, "map": "even"})
    assert {k: r.name for k, r in same.right.items()} == {
        f"blocks.{j}.output": f"blocks.{2 * j + 1}.output" for j in range(3)
    }
    (globbed,) = pair({"student": "blocks.*.output", "teacher": "blocks.*.input", "join": True})
    assert list(globbed.right) == [f"blocks.{i}.input" for i in range(6)]
    with pytest.raises(PlanError, match="supports one student tap at a time"):
        pair({"student": "blocks.*.output", "teacher": None, "join": True, "objective": "one"})
    with pytest.raises(PlanError, match="`through` supports one student tap"):
        pair({"student": "blocks.*.output", "teacher": None, "join": True, "through": "linear"})


def test_student_values_in_aux(pair) -> None:  # type: ignore[no-untyped-def]
    """encdec W13: ``aux: {p: student:prefixes}`` was refused."""
    (found,) = pair({"student": "logits", "aux": {"h": "student:blocks.0.output", "t": "blocks.0.input"}})
    assert {k: str(r) for k, r in found.aux.items()} == {"h": "student:blocks.0.output", "t": "blocks.0.input"}
    assert found.reads("student") == {"blocks.0.output"}
    local = pair({"student": "output", "aux": {"h": "student:output"}}, scope="local")
    assert [p.aux["h"].tap.name for p in local] == [f"blocks.{j}.output" for j in range(3)]


def test_further_values_that_an_objective_does_not_take(pair) -> None:  # type: ignore[no-untyped-def]
    """A misspelt one was dropped without a word, or died in the first step."""
    with pytest.raises(PlanError, match=r"m\.aux: objective 'mse' takes no further value 'wieght'"):
        pair({"student": "logits", "objective": "mse", "aux": {"wieght": "logits"}})
    with pytest.raises(PlanError, match="takes no further value 'z'") as caught:
        pair({"student": "logits", "aux": {"z": "logits"}})
    assert caught.value.hint == "it takes h, t, y"


def test_every_further_teacher(pair) -> None:  # type: ignore[no-untyped-def]
    teachers = {"": stack(6), "random": stack(6), "a": stack(2), "b": stack(2)}
    (found,) = pair({"student": "logits", "teacher": "*:logits"}, teachers=teachers)
    assert list(found.right) == ["a", "b"]
    assert found.several
    with pytest.raises(PlanError, match="supports one teacher at a time"):
        pair({"student": "logits", "teacher": "*:logits", "objective": "one"}, teachers=teachers)
    with pytest.raises(PlanError, match="there are none"):
        pair({"student": "logits", "teacher": "*:logits"})


def test_masks(pair) -> None:  # type: ignore[no-untyped-def]
    """house A3: losses of hidden states counted padding, and a mask that does not fit was nobody's business."""
    both = (Masks("mask", None),)
    assert [p.masks for p in pair({"student": "blocks.0.output", "map": "even"})] == [both]
    assert pair({"student": "blocks.0.output", "map": "even"}, mask="")[0].masks == (Masks(),)
    assert pair({"student": "blocks.0.output", "map": "even", "mask": None})[0].masks == (Masks(),)
    assert pair({"student": "logits"})[0].masks == (Masks(),)
    with pytest.raises(PlanError, match=r"'mask' \(BL\) does not select positions of logits \(BK\)"):
        pair({"student": "logits", "mask": "batch:mask"})
    with pytest.raises(PlanError, match="batches have no tensor 'nope'"):
        pair({"student": "logits", "mask": "batch:nope"})
    with pytest.raises(UsageError, match="should be batch:KEY"):
        pair({"student": "logits", "mask": "mask"})


@pytest.mark.parametrize("mask", ["auto", "batch:mask"])
def test_a_connector_that_pools_has_the_mask_of_its_positions(pair, mask: str) -> None:  # type: ignore[no-untyped-def]
    """Pooling counted padded positions; what it gives has no positions left for the objective to mask."""
    match = {"student": "blocks.0.output", "teacher": "logits", "map": "even", "mask": mask}
    assert pair({**match, "through": "pool"})[0].masks == (Masks(None, "mask"),)
    assert pair({**match, "through": "linear", "teacher": "blocks.0.output"})[0].masks == (Masks("mask", None),)


def test_a_connector_stands_between_and_is_counted(pair) -> None:  # type: ignore[no-untyped-def]
    """house 1.1, vision 2.19: a projector lived inside an objective, and the plan counted neither."""
    wide = {"": {"logits": tap("logits", "BK", K=5), "h": tap("h", "BLD", D=7)}}
    match = {"student": "blocks.0.output", "teacher": "h", "objective": "mse"}
    with pytest.raises(PlanError, match="D: 4 != 7") as caught:
        pair(match, teachers=wide)
    assert "through: linear" in str(caught.value.hint)
    (found,) = pair({**match, "through": "linear"}, teachers=wide)
    assert found.connector_parameters in (4 * 7, 4 * 7 + 7)
    assert found.parameters == found.connector_parameters
    with pytest.raises(UsageError, match=r"through\.options\.wdith"):
        pair({**match, "through": {"connector": "linear", "options": {"wdith": 3}}}, teachers=wide)
    with pytest.raises(UsageError, match="options of a connector cannot change"):
        pair({**match, "through": {"connector": "linear", "options": {"width": {"start": 3, "end": 4}}}}, teachers=wide)


def test_sites_of_a_global_stage_are_refused(pair) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="selects nothing in a global stage"):
        pair({"student": "blocks.0.output", "teacher": None}, sites="blocks.0")


@pytest.mark.parametrize("useless", [{"map": "even"}, {"detach": False}])
def test_settings_that_change_nothing_are_refused(pair, useless: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    """Both were accepted and ignored."""
    with pytest.raises(UsageError, match=rf"matches\.m\.{next(iter(useless))}: "):
        pair({"student": "logits", **useless})


def test_unknown_options_are_refused_and_the_known_ones_listed(pair) -> None:  # type: ignore[no-untyped-def]
    """vision 2.5: ``options: {gama: 1.4}`` ran to the end with gamma 1.0."""
    for value in (1.4, {"start": 1.0, "end": 1.4}):
        with pytest.raises(UsageError, match=r"matches\.m\.options\.gama") as caught:
            pair({"student": "logits", "options": {"gama": value}})
        assert "gamma" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"options\.gamma"):
        pair({"student": "logits", "options": {"gamma": {"start": 1.0, "end": "much"}}})


def test_coupling_is_known_before_anything_runs(pair) -> None:  # type: ignore[no-untyped-def]
    """house A4, encdec W1, vision 2.2: ``couples`` had one reader, when memory ran out."""
    assert "One" in pair({"student": "logits", "objective": "one"})[0].coupled
    assert pair({"student": "logits"})[0].coupled == ""


def test_nothing_is_allocated(pair) -> None:  # type: ignore[no-untyped-def]
    pair({"student": "logits"})
    assert Anything.built_on == "meta"
