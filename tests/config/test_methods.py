"""Methods and recipes: heads, inheritance by name, what null removes, short forms, settings above a default recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xarch.config.load import load_config
from xarch.config.packaged import layer_of, method_of
from xarch.config.provenance import Merged
from xarch.config.schema import RunConfig
from xarch.config.yaml_text import parse_yaml
from xarch.errors import UsageError
from xarch.matching.references import check_placeholders, parse
from xarch.registry.loader import get_registry

ON_PAPER = sorted((Path(__file__).parent / "on_paper").glob("*.yaml"))
METHOD = """\
method: {title: OFA-KD, paper: "arXiv:2310.19444", families: [image], control: kd}
stages:
  distil:
    scope: global
    epochs: 40
    batch: {size: 100, steps: {mixup: {alpha: 0.8}}}
    matches:
      exits: {student: "features.*", teacher: logits, through: exit, objective: ofa, options: {gamma: 1.0}}
      kd: {student: logits, objective: ofa}
    trains: {all: {}}
    optimiser: {schedule: {name: step, milestones: [0.5]}}
    requires: {teacher.top1: {min: 0.6}}
    phases: [{from: 0.8, set: {matches.kd.weight: 2.0}}]
"""
Methods = Callable[..., None]


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Methods:
    """``methods(name=yaml, ...)`` makes packaged methods of a plugin file."""

    def make(**texts: str) -> None:
        folder = tmp_path / "plugin"
        folder.mkdir()
        lines = []
        for name, text in texts.items():
            (folder / f"{name}.yaml").write_text(text)
            lines.append(f"    registry.method('{name}', load=f'{{__name__}}:{name}.yaml')")
        code = "from xarch import hookimpl\n\n@hookimpl\ndef xarch_register(registry):\n" + "\n".join(lines) + "\n"
        (folder / "given.py").write_text(code)
        monkeypatch.setenv("XARCH_PLUGIN_FILES", str(folder / "given.py"))
        get_registry.cache_clear()

    return make


@pytest.mark.parametrize("path", ON_PAPER, ids=lambda p: p.stem)
def test_methods_written_in_the_vocabulary_parse_and_their_references_are_grammatical(path: Path) -> None:
    """house 5.3: the vocabulary carries methods that are not built, and their names are references of its grammar."""
    merged = Merged()
    merged.apply(layer_of(path.name, parse_yaml(path.read_text(), path.name)))
    config = RunConfig.model_validate(merged.tree)
    assert config.stages
    teachers = list(config.teachers)
    for name, stage in config.stages.items():
        for key, match in stage.matches.items():
            where = f"{path.name}: {name}.{key}"
            for tap in [match.student] if isinstance(match.student, str) else match.student:
                check_placeholders(tap, where)
            parse(match.teacher, where, teachers)
            for ref in match.aux.values():
                assert parse(ref, where, teachers) is not None
            if match.mask not in (None, "auto"):
                assert parse(match.mask, where).model == "batch"  # type: ignore[union-attr]


def test_a_method_is_named_wherever_a_recipe_is(methods: Methods, tmp_path: Path) -> None:
    methods(ofa=METHOD, mine="method: {title: mine}\nrecipe: ofa\nseed: 3\n", other="method: ofa\nseed: 4\n")
    for config, seed in (("ofa", 0), ("mine", 3), ("other", 4)):
        got = load_config(config)
        assert (list(got.config.stages["distil"].matches), got.config.seed) == (["exits", "kd"], seed)
        assert got.config.recipe == config
    file = tmp_path / "run.yaml"
    for key in ("recipe", "method"):
        file.write_text(f"{key}: ofa\nbudget: 3k\n")
        assert list(load_config(str(file)).config.stages) == ["distil"]
    assert load_config("ofa").provenance["stages.distil.epochs"] == "method ofa:5"
    head = method_of("mine")
    assert head is not None
    assert (head.title, head.control, head.families) == ("mine", "", [])


def test_a_family_settles_what_is_open_and_nothing_that_was_removed(methods: Methods) -> None:
    methods(ofa=METHOD)
    settings = {"validation.samples": 500, "optimiser.warmup": 0.1}
    validated = load_config("ofa", sets=["stages.distil.validation.keep=better"])
    free = validated.with_settings(settings, "family x").config.stages["distil"]
    assert free.validation is not None
    assert (free.validation.samples, free.optimiser.warmup) == (500, 0.1)
    given = load_config("ofa", sets=["stages.distil.validation=null", "stages.distil.optimiser.warmup=0.3"])
    stage = given.with_settings(settings, "family x").config.stages["distil"]
    assert (stage.validation, stage.optimiser.warmup) == (None, 0.3)


def test_a_familys_options_are_for_its_own_optimiser(methods: Methods) -> None:
    methods(ofa="\n".join(line for line in METHOD.splitlines() if "optimiser" not in line))
    settings = {"optimiser.algorithm": "adamw", "optimiser.options.betas": [0.9, 0.999]}
    stage = load_config("ofa").with_settings(settings, "family x").config.stages["distil"]
    assert (stage.optimiser.algorithm, stage.optimiser.options) == ("adamw", {"betas": [0.9, 0.999]})
    other = load_config("ofa", sets=["stages.distil.optimiser.algorithm=sgd"]).with_settings(settings, "family x")
    assert (other.config.stages["distil"].optimiser.algorithm, other.config.stages["distil"].optimiser.options) == (
        "sgd",
        {},
    )


def test_the_families_of_a_head_reach_the_configuration(methods: Methods, tmp_path: Path) -> None:
    """The lowest method speaks for what extends it, until one says otherwise."""
    methods(ofa=METHOD)
    file = tmp_path / "run.yaml"
    file.write_text("method: ofa\nteacher: x:y\n")
    assert load_config(str(file)).config.families == ["image"]
    file.write_text("method: {title: Mine, families: [image, rows]}\nrecipe: ofa\n")
    assert load_config(str(file)).config.families == ["image", "rows"]
    assert load_config("ofa", sets=["families=[]"]).config.families == []


def test_a_wrong_head_and_an_unknown_method_are_named(methods: Methods) -> None:
    methods(ofa=METHOD, bad="method: {title: x, papre: y}\nseed: 1\n")
    with pytest.raises(UsageError, match=r"method bad: method\.papre") as caught:
        load_config("bad")
    assert "paper" in str(caught.value.hint)
    with pytest.raises(UsageError, match="did you mean 'ofa'"):
        load_config("ofaa")


def test_settings_are_applied_above_the_default_recipe(methods: Methods) -> None:
    """vision 2.4a: with the target's default recipe the same words work as with a named one."""
    methods(ofa=METHOD)
    sets = ["stages.distil.matches.exits.options.gamma=1.4", "stages.distil.matches.kd.weight=2"]
    first = load_config(None, sets=sets)
    assert first.needs_recipe
    matches = first.with_recipe("ofa").config.stages["distil"].matches
    assert (matches["exits"].options, matches["kd"].weight) == ({"gamma": 1.4}, 2.0)
    assert matches["exits"].student == "features.*"


def test_a_list_of_matches_replaces_the_recipes_and_keeps_the_rest_of_the_stage(methods: Methods) -> None:
    """encdec nit: ``--set stages.X.matches=[…]`` must not drop the default recipe."""
    methods(ofa=METHOD)
    item = "stages.distil.matches=[{student: logits, objective: kl}]"
    first = load_config(None, sets=[item, "stages.distil.matches.m0.weight=3"])
    assert first.needs_recipe
    got = first.with_recipe("ofa")
    stage = got.config.stages["distil"]
    assert {n: (m.objective, m.weight) for n, m in stage.matches.items()} == {"m0": ("kl", 3.0)}
    assert list(stage.trains) == ["all"]
    assert got.provenance["stages.distil.matches.m0.objective"] == f"--set {item}"


@pytest.mark.parametrize(
    ("item", "left"),
    [
        ("stages.distil.matches.exits=null", lambda s: list(s.matches) == ["kd"]),
        ("stages.distil.batch.steps.mixup=null", lambda s: s.batch.steps == {} and s.batch.size == 100),
        ("stages.distil.phases.0=null", lambda s: s.phases == []),
        ("stages.distil.requires.teacher.top1=null", lambda s: s.requires == {}),
        ("stages.distil.requires.teacher.top1.min=0.7", lambda s: s.requires["teacher.top1"].min == 0.7),
    ],
)
def test_null_removes_any_named_member(methods: Methods, item: str, left: Callable[..., bool]) -> None:
    methods(ofa=METHOD)
    assert left(load_config("ofa", sets=[item]).config.stages["distil"])


def test_short_forms_merge_with_what_they_stand_for(methods: Methods) -> None:
    methods(ofa=METHOD, plain=METHOD.replace("{name: step, milestones: [0.5]}", "cosine"))
    stage = load_config("ofa", sets=["stages.distil.batch=8", "stages.distil.optimiser.schedule=cosine"]).config
    distil = stage.stages["distil"]
    assert (distil.batch.size, list(distil.batch.steps)) == (8, ["mixup"])
    assert (distil.optimiser.schedule.name, distil.optimiser.schedule.options) == ("cosine", {})
    got = load_config("plain", sets=["stages.distil.matches.exits.through.options.width=3"])
    through = got.config.stages["distil"].matches["exits"].through
    assert through is not None
    assert (through.connector, through.options) == ("exit", {"width": 3})
    assert got.provenance["stages.distil.matches.exits.through.connector"] == "method plain:8"
    power = load_config("plain", sets=["stages.distil.optimiser.schedule.power=2"]).config.stages["distil"]
    assert (power.optimiser.schedule.name, power.optimiser.schedule.options) == ("cosine", {"power": 2})


def test_phases_are_written_as_they_are_read(methods: Methods) -> None:
    methods(ofa=METHOD)
    got = load_config("ofa")
    assert got.config.stages["distil"].model_dump()["phases"] == [{"from": 0.8, "set": {"matches.kd.weight": 2.0}}]
    assert got.provenance["stages.distil.phases.0.from"] == "method ofa:13"
    with pytest.raises(UsageError, match=r"unknown key stages\.distil\.phases\.0\.form; did you mean .*\.from\?"):
        load_config("ofa", sets=["stages.distil.phases=[{form: 0.5, set: {}}]"])


def test_teachers_have_names_of_their_own() -> None:
    with pytest.raises(UsageError, match="a teacher cannot be called 'ema'"):
        load_config(None, overrides={"teachers": {"ema": {"ref": "hf:x"}}})


def test_a_family_gives_what_a_method_leaves_open_and_no_more(methods: Methods, tmp_path: Path) -> None:
    """kd has one file for sentences and pictures; what is written anywhere stays."""
    methods(ofa=METHOD, plain=METHOD.replace("    epochs: 40\n", "").replace("batch: {size: 100, ", "batch: {"))
    given = {
        "epochs": 3,
        "batch.size": 50,
        "optimiser.lr": 0.5,
        "optimiser.schedule": "cosine",
        "matches.kd.options.gamma": 1.5,
        "matches.labels.options.smoothing": 0.1,
        "validation.samples": 500,
    }
    got = load_config("plain").with_settings(given, "family x")
    stage = got.config.stages["distil"]
    assert (stage.epochs, stage.batch.size, list(stage.batch.steps), stage.optimiser.lr) == (3, 50, ["mixup"], 0.5)
    assert stage.optimiser.schedule.name == "step"
    assert stage.matches["kd"].options == {"gamma": 1.5}
    assert set(stage.matches) == {"exits", "kd"}
    assert stage.validation is None
    assert got.provenance["stages.distil.batch.size"] == "family x"
    kept = load_config("ofa").with_settings(given, "family x").config.stages["distil"]
    assert (kept.epochs, kept.batch.size) == (40, 100)
    short = load_config("plain", sets=["stages.distil.batch=7", "stages.distil.units=70"])
    short_stage = short.with_settings(given, "family x").config.stages["distil"]
    assert (short_stage.epochs, short_stage.units, short_stage.batch.size) == (None, 70, 7)


def test_a_family_gives_nothing_to_a_stage_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "stages:\n  own: {scope: global, share: 1.0, trains: {all: {}}, "
        "matches: {kd: {student: logits, objective: kl}}}\n"
    )
    loaded = load_config(str(file))
    assert loaded.with_settings({"batch.size": 50}, "family x") is loaded


@pytest.mark.parametrize("method", [True, False])
def test_a_family_settles_the_evaluation_that_is_open(method: bool, methods: Methods, tmp_path: Path) -> None:
    """Of any run: one with stages of its own is evaluated like one by a method."""
    methods(ofa=METHOD)
    file = tmp_path / "run.yaml"
    own = "scope: global, share: 1.0, trains: {all: {}}, matches: {kd: {student: logits, objective: kl}}"
    file.write_text("recipe: ofa\n" if method else f"stages:\n  own: {{{own}}}\n")
    wanted = {"samples": 1000, "batch": 100, "curve.samples": 4}
    got = load_config(str(file), sets=["evaluate.samples=7"]).with_settings({}, "family x", wanted)
    assert (got.config.evaluate.samples, got.config.evaluate.batch, got.config.evaluate.curve) == (7, 100, None)
    assert got.provenance["evaluate.batch"] == "family x"
