"""A written configuration means what it was written from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xarch.config.load import load_config
from xarch.config.schema import RunConfig
from xarch.config.write import render
from xarch.config.yaml_text import parse_yaml

RECIPE = """\
teacher: zoo:small
student: {target: dm2, options: {heads: 4, rate: 1e-3, text: "off"}}
data: {ref: "text:a b", sample: {length: 512}}
budget: 2M
stages:
  matrix:
    matches: [{student: matrix, objective: frobenius}]
    trains: {mixers: {}}
    share: 0.5
  hidden:
    matches:
      - {student: mixer_out, objective: l2}
      - {student: output, teacher: null, objective: relative_l2, weight: {start: 1, end: 0}}
    trains: {mixers: {}, norms: {lr: 0.1}}
    optimiser: {lr: 1e-3, schedule: cosine}
    validation: {samples: 4}
  solve: {kind: closed_form, units: 10k, options: {ridge: 1e-6}}
gates:
  kl: {max: 0.2}
  "odd: name": {min: 1}
export: {profiles: [cpu], options: {prefill: [64, 128]}}
"""
Recipes = Callable[..., None]


def test_a_rendered_recipe_is_the_same_configuration(recipes: Recipes, tmp_path: Path) -> None:
    recipes(base=RECIPE)
    original = load_config("base", sets=["seed=3"])
    file = tmp_path / "written.yaml"
    file.write_text(render(original))
    assert load_config(str(file)).config == original.config
    alone = file.read_text().replace("recipe: base\n", "")
    file.write_text(alone)
    assert load_config(str(file)).config == original.config.model_copy(update={"recipe": None})


def test_a_value_can_be_changed_in_the_file(recipes: Recipes, tmp_path: Path) -> None:
    recipes(base=RECIPE)
    text = render(load_config("base"))
    assert "    units: 10000\n" in text
    file = tmp_path / "written.yaml"
    file.write_text(text.replace("    units: 10000\n", "    units: 7\n").replace("# threads: null", "threads: 3"))
    changed = load_config(str(file)).config
    assert changed.stages["solve"].units == 7
    assert changed.runtime.threads == 3


def test_every_top_level_key_is_there_with_its_meaning() -> None:
    text = render(load_config(), recipes=["one", "two"])
    assert "# recipes here: one, two" in text
    for name, field in RunConfig.model_fields.items():
        assert f"\n# {name}: " in text or f"\n{name}:\n" in text
        if field.description:
            assert f"# {field.description}" in text
    assert set(parse_yaml(text, "f").data.values()) == {None}


def test_a_file_where_everything_is_commented_out_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "written.yaml"
    file.write_text(render(load_config()))
    assert load_config(str(file)).config == RunConfig()


def test_meanings_are_printed_once(recipes: Recipes) -> None:
    recipes(base=RECIPE)
    text = render(load_config("base"))
    assert text.count("# share of the run's budget") == 1
    assert text.count("# micro_batch: null") == 1
    assert "      lr: 0.001\n" in text
