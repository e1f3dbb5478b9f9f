"""Precedence, provenance and errors of configurations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xarch.config.load import load_config
from xarch.config.provenance import deep_leaves, dotted
from xarch.config.schema import EMA, RunConfig, TeacherConfig
from xarch.errors import PluginError, UsageError

RECIPE = """\
teacher: zoo:small
student: {target: dm2, options: {heads: 4}}
budget: 2M
stages:
  matrix:
    matches: {mixing: {student: matrix, objective: frobenius}}
    trains: {mixers: {}}
    share: 0.5
  hidden:
    matches:
      - {student: mixer_out, objective: l2}
      - {student: output, objective: relative-l2, weight: 0.5}
    trains: {mixers: {}, norms: {lr: 0.1}}
    optimiser: {lr: 1e-3}
    phases: [{from: 0.5, set: {matches.m1: null}}]
gates:
  kl: {max: 0.2}
seed: 1
"""
Recipes = Callable[..., None]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_precedence_and_provenance(recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes(base=RECIPE)
    run = write(
        tmp_path / "mine.yaml",
        "recipe: base\nseed: 2\nbudget: 3k\nstages:\n  hidden:\n    units: 4k\n    optimiser:\n      lr: 2e-3\n",
    )
    monkeypatch.setenv("XARCH_SEED", "3")
    monkeypatch.setenv("XARCH_DEVICE", "cpu")
    monkeypatch.setenv("XARCH_SET__stages__hidden__optimiser__clip", "0.5")
    sets = ["seed=5", "stages.matrix.skip=true", "stages.hidden.matches.m1.weight=2"]
    got = load_config(run, sets=sets, overrides={"seed": 4, "tiny": True, "runtime.device": None})
    c, p = got.config, got.provenance
    assert (c.seed, p["seed"]) == (5, "--set seed=5")
    assert (c.budget, p["budget"]) == (3000, "mine.yaml:3")
    assert (c.tiny, p["tiny"]) == (True, "command line")
    assert (c.runtime.device, p["runtime.device"]) == ("cpu", "env XARCH_DEVICE")
    assert (c.teacher, p["teacher"]) == ("zoo:small", "recipe base:1")
    assert (c.recipe, p["recipe"]) == ("base", "mine.yaml:1")
    hidden = c.stages["hidden"]
    assert (hidden.units, p["stages.hidden.units"]) == (4000, "mine.yaml:6")
    assert (hidden.optimiser.lr, p["stages.hidden.optimiser.lr"]) == (2e-3, "mine.yaml:8")
    assert hidden.optimiser.clip == 0.5
    assert p["stages.hidden.optimiser.clip"] == "env XARCH_SET__stages__hidden__optimiser__clip"
    assert {name: m.weight for name, m in hidden.matches.items()} == {"m0": 1.0, "m1": 2.0}
    assert p["stages.hidden.matches.m1.weight"] == "--set stages.hidden.matches.m1.weight=2"
    assert p["stages.hidden.matches.m1.objective"] == "recipe base:12"
    assert p["stages.hidden.matches.m0.weight"] == "default"
    assert p["stages.hidden.optimiser.warmup"] == "default"
    assert c.stages["matrix"].skip
    assert p["stages.matrix.skip"] == "--set stages.matrix.skip=true"
    assert list(c.stages) == ["matrix", "hidden"]
    assert c.student.options == {"heads": 4}
    assert got.name == "mine"


def test_every_leaf_has_an_origin(recipes: Recipes) -> None:
    recipes(base=RECIPE)
    got = load_config("base")
    wanted = {dotted(path) for path, _ in deep_leaves(got.config.model_dump(mode="json"))}
    assert set(got.provenance) == wanted
    assert got.name == "base"
    assert got.provenance["recipe"] == "command line"


def test_null_removes_what_the_recipe_brought_and_empty_sections_are_nothing(recipes: Recipes, tmp_path: Path) -> None:
    recipes(base=RECIPE)
    text = "recipe: base\ngates:\nruntime:\nstages:\n  matrix: null\n  hidden:\n    trains: {norms: null, head: {}}\n"
    c = load_config(write(tmp_path / "m.yaml", text)).config
    assert list(c.stages) == ["hidden"]
    assert set(c.stages["hidden"].trains) == {"mixers", "head"}
    assert set(c.gates) == {"kl"}
    assert load_config("base", sets=["gates.kl=null"]).config.gates == {}


def test_changing_an_item_of_a_list_leaves_the_layers_as_they_were(recipes: Recipes, tmp_path: Path) -> None:
    recipes(base=RECIPE)
    run = write(tmp_path / "m.yaml", "stages: {hidden: {matches: [{student: a, objective: l2}]}}")
    got = load_config(run, sets=["stages.hidden.matches.m0.weight=3"])
    assert got.with_recipe("base").config.stages["hidden"].matches["m0"].weight == 3
    assert got.layers[0].assignments[0].value == [{"student": "a", "objective": "l2"}]


def test_null_where_nothing_is_removed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gates\.kl: .*not None \(m\.yaml:2\)"):
        load_config(write(tmp_path / "m.yaml", "gates:\n  kl:\n"))


def test_recipes_start_from_recipes(recipes: Recipes) -> None:
    recipes(base=RECIPE, demo="recipe: base\nseed: 9\nstages: {hidden: {units: 10}}\n")
    got = load_config("demo")
    assert (got.config.seed, got.config.recipe) == (9, "demo")
    assert got.config.stages["hidden"].units == 10
    assert got.provenance["seed"] == "recipe demo:2"
    assert got.provenance["gates.kl.max"] == "recipe base:17"


def test_recipes_that_start_from_each_other(recipes: Recipes) -> None:
    recipes(one="recipe: two\n", two="recipe: one\n")
    with pytest.raises(UsageError, match="one > two > one"):
        load_config("one")


def test_a_default_recipe_goes_below_what_the_user_gave(recipes: Recipes) -> None:
    recipes(base=RECIPE)
    first = load_config(None, sets=["stages.hidden.units=5k", "seed=7"], overrides={"teacher": "hf:x/y"})
    assert first.needs_recipe
    assert first.config.stages == {}
    second = first.with_recipe("base")
    assert not second.needs_recipe
    assert (second.config.recipe, second.provenance["recipe"]) == ("base", "default of the target")
    assert (second.config.teacher, second.config.seed) == ("hf:x/y", 7)
    assert second.config.stages["hidden"].units == 5000
    assert list(second.config.stages) == ["matrix", "hidden"]
    with pytest.raises(UsageError, match=r"unknown key stages\.hiden; did you mean stages\.hidden\?"):
        load_config(None, sets=["stages.hiden.units=5k"]).with_recipe("base")


@pytest.mark.parametrize(
    ("item", "matches"), [("stages.own.matches.only=null", set()), ("stages.own.matches.nly=null", {"only"})]
)
def test_a_stage_of_a_file_stays_its_own_whatever_is_set(item: str, matches: set[str], tmp_path: Path) -> None:
    """The stage was dropped without a word, and the target's default recipe run instead."""
    file = tmp_path / "run.yaml"
    file.write_text(
        "stages:\n  own:\n    matches: {only: {student: x, objective: mse}}\n    trains: {all: {}}\n", encoding="utf-8"
    )
    loaded = load_config(str(file), sets=[item])
    assert not loaded.needs_recipe
    assert set(loaded.config.stages["own"].matches) == matches
    with pytest.raises(
        UsageError, match=r"unknown key stages\.own\.matches\.nly; did you mean stages\.own\.matches\.only"
    ):
        load_config(str(file), sets=["stages.own.matches.nly.weight=0"])


def test_a_number_for_an_average_changes_its_decay_only(tmp_path: Path) -> None:
    """``--set …ema=0.5`` adopted an average that the file only measures against."""
    text = "stages:\n  own: {kind: closed_form, ema: {decay: 0.9, adopt: false}}\nteachers: {a: 'x:1'}\n"
    got = load_config(write(tmp_path / "run.yaml", text), sets=["stages.own.ema=0.5", "teachers.a.weight=2"]).config
    assert got.stages["own"].ema == EMA(decay=0.5, adopt=False)
    assert got.teachers["a"] == TeacherConfig(ref="x:1", weight=2.0)


def test_a_file_with_whole_stages_needs_no_recipe(tmp_path: Path) -> None:
    text = "stages:\n  own: {matches: [{student: a, objective: l2}], trains: {all: {}}}\n  solve: {kind: closed_form}\n"
    got = load_config(write(tmp_path / "run.yaml", text))
    assert not got.needs_recipe
    assert list(got.config.stages) == ["own", "solve"]
    assert got.name == tmp_path.name


def test_the_head_of_a_method_is_no_setting_of_a_run(recipes: Recipes) -> None:
    recipes(base=RECIPE)
    with pytest.raises(UsageError, match=r"unknown key method: .*a run cannot change it.*--set families=\[\]"):
        load_config("base", sets=["method.families=[field]"])


HIDDEN = "stages:\n  hidden:\n    "
MATCH = HIDDEN + "matches:\n      - {student: a, objective: l2, "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1", "unknown key sed; did you mean seed? (run.yaml:1)"),
        ("stages:\n  hiden: {units: 3}", "unknown key stages.hiden; did you mean stages.hidden? (run.yaml:2)"),
        (HIDDEN + "lr: 3", "stages.hidden.lr; did you mean stages.hidden.optimiser.lr? (run.yaml:3)"),
        ("device: cpu", "unknown key device; did you mean runtime.device?"),
        ("runtime:\n  cpu: 1", "unknown key runtime.cpu; known here: cache, cache_gb, device, "),
        ("student: {optoins: {a: 1}}", "unknown key student.optoins; did you mean student.options?"),
        (HIDDEN + "optimiser: {lr: -1}", "hidden.optimiser.lr: input should be greater than 0, not -1 (run.yaml:3)"),
        (HIDDEN + "batch: many", "number of samples or {size: 100, steps: {…}}, not 'many' (run.yaml:3)"),
        (HIDDEN + "scope: lokal", "stages.hidden.scope: input should be 'local' or 'global', not 'lokal'"),
        (HIDDEN + "matches: [{objective: l2}]", "stages.hidden.matches.m0.student is required (run.yaml:3)"),
        (MATCH + "wieght: 2}", "matches.m0.wieght; did you mean stages.hidden.matches.m0.weight? (run.yaml:4)"),
        (MATCH + "weight: heavy}", "m0.weight: input should be a number or {start, end, shape}, not 'heavy'"),
        (MATCH + "map: {a: 1}}", "matches.m0.map.a: a key should be an integer, not 'a'"),
        (MATCH + "weight: {start: 1, ned: 2}}", "weight.ned; did you mean stages.hidden.matches.m0.weight.end?"),
        ("stages: 3", "stages: input should be a mapping, not 3 (run.yaml:1)"),
        ("budget: 2MB", "budget: input should be an integer, not '2MB'"),
    ],
)
def test_errors_say_where_and_what_was_meant(recipes: Recipes, tmp_path: Path, text: str, message: str) -> None:
    recipes(base=RECIPE)
    with pytest.raises(UsageError) as caught:
        load_config(write(tmp_path / "run.yaml", text + "\nrecipe: base"))
    assert message in caught.value.what


def test_what_is_not_a_configuration_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the top level must be a mapping, not list"):
        load_config(write(tmp_path / "run.yaml", "- 1\n- 2"))
    with pytest.raises(UsageError, match="unknown recipe 'nope'"):
        load_config(write(tmp_path / "run.yaml", "recipe: nope"))


def test_several_errors_are_shown_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(write(tmp_path / "run.yaml", "sed: 1\nbudget: x\n" + "".join(f"zz{i}: 1\n" for i in range(20))))
    lines = caught.value.what.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 12 more"


@pytest.mark.parametrize(
    ("item", "key", "value"),
    [
        ("data.ref=text:foo", "data.ref", "text:foo"),
        ("data.ref=12", "data.ref", "12"),
        ("data.ref=true", "data.ref", "true"),
        ("evaluate.metric=null", "evaluate.metric", None),
        ("evaluate.metric=2", "evaluate.metric", "2"),
        ("stages.hidden.sites=*", "stages.hidden.sites", "*"),
        ("stages.hidden.sites=*.3", "stages.hidden.sites", "*.3"),
        ("teacher=a=b", "teacher", "a=b"),
        ("teacher=", "teacher", ""),
        ("budget=1.5M", "budget", 1_500_000),
        ("budget=2 k", "budget", 2_000),
        ("stages.hidden.units=3K", "stages.hidden.units", 3_000),
        ("stages.hidden.optimiser.lr=1e-4", "stages.hidden.optimiser.lr", 1e-4),
        ("stages.hidden.teacher_cache=off", "stages.hidden.teacher_cache", "off"),
        ("export.profiles=[cpu, npu]", "export.profiles", ["cpu", "npu"]),
        ("student.options.layers=[0, 3]", "student.options.layers", [0, 3]),
        ("student.options.x=1e-3", "student.options.x", 1e-3),
    ],
)
def test_sets_are_typed_by_the_schema(recipes: Recipes, item: str, key: str, value: object) -> None:
    recipes(base=RECIPE)
    node: Any = load_config("base", sets=[item]).config.model_dump()
    for part in key.split("."):
        node = node[part]
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("seed", "should look like"),
        ("=3", "should look like"),
        ("a..b=3", "should look like"),
        ("stages.hidden.phases.7.from=1", "the list has 1 entries"),
        ("stages.hidden.phases.²=1", "the list has 1 entries"),
        ("stages.hidden.matches.m11.weight=1", r"unknown key stages\.hidden\.matches\.m11; did you mean .*\.m1\?"),
        ("stages.hiden.units=1", r"did you mean stages\.hidden\? \(--set stages\.hiden\.units=1\)"),
        ("seed=x", r"seed: .*, not 'x' \(--set seed=x\)"),
        (f"student.options.{'a.' * 100}b=1", "at most 40 parts"),
    ],
)
def test_wrong_sets(recipes: Recipes, item: str, message: str) -> None:
    recipes(base=RECIPE)
    with pytest.raises(UsageError, match=message):
        load_config("base", sets=[item])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "run.yaml", "seed: 1")
    with pytest.raises(UsageError, match=r"runn\.yaml does not exist; did you mean run\.yaml\?"):
        load_config("runn.yaml")
    with pytest.raises(UsageError, match=r"no/where\.yaml does not exist$"):
        load_config("no/where.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_config("bytes.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * 1_100_000)
    with pytest.raises(UsageError, match="larger than"):
        load_config("huge.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError, match=r"cannot read folder\.yaml"):
        load_config("folder.yaml")


def test_recipe_names(recipes: Recipes) -> None:
    recipes(base=RECIPE)
    with pytest.raises(UsageError, match="unknown recipe 'bse'; did you mean 'base'"):
        load_config("bse")
    with pytest.raises(PluginError, match="no plugin 'other'"):
        load_config("other:base")
    assert load_config("given:base").config.seed == 1


def test_a_broken_recipe_is_named(recipes: Recipes) -> None:
    recipes(bad="seed: 1\nseed: 2\n", wrong="sed: 1\n")
    with pytest.raises(UsageError, match="recipe bad:2: seed is given twice"):
        load_config("bad")
    with pytest.raises(UsageError, match=r"unknown key sed; did you mean seed\? \(recipe wrong:1\)"):
        load_config("wrong")


def test_nothing_at_all_is_the_defaults() -> None:
    got = load_config()
    assert got.config == RunConfig()
    assert set(got.provenance.values()) == {"default"}


def test_loading_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from xarch.config.load import load_config; load_config(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


KEYS = st.sampled_from(["seed", "stages", "hidden", "matches", "optimiser", "lr", "0", "gates", "kl", "x", "student"])
VALUES = st.sampled_from(
    ["1", "x", "null", "[]", "{}", "{a: 1}", "[{student: a, objective: b}]", "*", "1e999", "", "!!x"]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=5), VALUES), max_size=6))
def test_random_sets_never_crash(items: list[tuple[list[str], str]]) -> None:
    with contextlib.suppress(UsageError):
        load_config(None, sets=[f"{'.'.join(k)}={v}" for k, v in items])
