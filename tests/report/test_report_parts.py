"""Wording, pictures, sites and the model card."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCardData
from hypothesis import given
from hypothesis import strategies as st

from tests.report.run_folders import make_plan, make_run
from xarch.files.run_dir import RunDir
from xarch.report import Section, Shaded, Strip
from xarch.report.blocks import Figure, Figures, Tile, Tiles
from xarch.report.card import model_card
from xarch.report.files import RunInfo, natural, read_run
from xarch.report.outcome import outcome_of
from xarch.report.plots.bars import comparison_svg
from xarch.report.plots.canvas import THEME, Ticks
from xarch.report.plots.curves import POINTS, curve_svg
from xarch.report.plots.heat import LEVELS, heat_svg, level_edges
from xarch.report.render_html import to_html
from xarch.report.render_markdown import escape, fenced, to_markdown
from xarch.report.sections.per_site import per_site
from xarch.report.sections.training import training
from xarch.report.sections.verdict import verdict
from xarch.report.wording import count, duration, number, size, with_unit, words
from xarch_decoder.report import sections


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0, "0"), (0.1187, "0.1187"), (34.16, "34.16"), (1234.5678, "1235"), (1.5e-7, "1.50e-07"),
        (2.5e9, "2.50e+09"),
        (8176, "8 176"), (True, "True"), (None, "–"), (math.nan, "nan"), (math.inf, "inf"), ("x", "x"),
    ],
)  # fmt: skip
def test_numbers(value: object, text: str) -> None:
    assert number(value).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("value", "counted", "sized", "lasted"),
    [
        (0, "0", "0 B", "<1 s"), (0.5, "0.5", "0 B", "<1 s"), (999, "999", "999 B", "16 m 39 s"),
        (1_234_567, "1.23 M", "1.23 MB", "14 d 6 h"), (75, "75", "75 B", "1 m 15 s"), (None, "–", "–", "–"),
        (2_000, "2000", "2 kB", "33 m 20 s"), (math.nan, "–", "–", "–"),
    ],
)  # fmt: skip
def test_amounts(value: object, counted: str, sized: str, lasted: str) -> None:
    assert [f(value).replace("\u00a0", " ") for f in (count, size, duration)] == [counted, sized, lasted]


def test_names_are_spelled() -> None:
    assert words("top1_agreement") == "top-1 agreement"
    assert with_unit("kl", "nats/token") == "KL (nats/token)"
    assert with_unit("made_up") == "made up"


@given(st.text())
def test_escaped_markdown_is_one_line_without_markup(text: str) -> None:
    line = escape(text)
    assert "\n" not in line
    assert re.search(r"(?<!\\)(?:\\\\)*[*_`<\[|]", line) is None


@given(st.text(alphabet="`a\n#"))
def test_a_fence_cannot_be_closed_by_its_text(text: str) -> None:
    lines = fenced(text)
    fence = lines[-1]
    assert set(fence) == {"`"}
    assert all(fence not in line for line in lines[1:-1])


def test_natural_order() -> None:
    names = ["blocks.10", "blocks.9", "a", "blocks.9.x", "10", "9"]
    assert sorted(names, key=natural) == ["9", "10", "a", "blocks.9", "blocks.9.x", "blocks.10"]


def test_pictures_have_own_ids_and_no_fixed_colours() -> None:
    points = [(float(i), 1 / (i + 1)) for i in range(2000)]
    svgs = [
        curve_svg("one", {"loss": points}, axis="tokens"),
        curve_svg("two", {"loss": points, "a<b>$x": points[:40]}, axis="tokens"),
        comparison_svg("three", [("teacher", 1.0), ("student", 2.0), ("x" * 90, 0.0)]),
        heat_svg("four", [("r", {"b.0": 1.0, "b.1": 2.0}), ("s", {"b.1": 3.0})], ["b.0", "b.1"]),
    ]
    ids: list[str] = []
    for svg in svgs:
        assert svg is not None
        assert not any(color in svg for color in THEME.values())
        ids += re.findall(r'\bid="([^"]+)"', svg)
        used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
        assert used <= set(ids)
    assert len(ids) == len(set(ids))
    assert "a&lt;b&gt;$x" in str(svgs[1])
    assert str(svgs[0]).count(" L ") + str(svgs[0]).count("\nL ") < 3 * POINTS


@pytest.mark.parametrize("values", [[], [(0.0, math.nan)], [(0.0, math.inf)]])
def test_nothing_finite_nothing_drawn(values: list[tuple[float, float]]) -> None:
    assert curve_svg("x", {"loss": values}, axis="steps") is None
    assert comparison_svg("x", [("student", v) for _, v in values]) is None
    assert heat_svg("x", [("r", {"a": v}) for _, v in values], ["a"]) is None


def test_the_names_of_many_curves_stand_below_them() -> None:
    points = [(0.0, 1.0), (1.0, 0.5)]
    few, many = (curve_svg("x", {f"arm {n}": points for n in range(size)}, axis="steps") for size in (3, 4))
    assert few is not None
    assert many is not None
    heights = [float(re.findall(r'viewBox="0 0 \S+ ([0-9.]+)"', svg)[0]) for svg in (few, many)]
    assert heights[1] > heights[0], "they have room of their own"
    assert all(f"arm {n}<" in many for n in range(4))


def test_curves_of_teacher_and_student_have_their_colours_and_others_the_rest() -> None:
    points = [(0.0, 1.0), (1.0, 0.5)]
    found = [
        set(
            re.findall(r"fill: var\(--(\w+)\); stroke", str(curve_svg("x", dict.fromkeys(names, points), axis="steps")))
        )
        for names in (["teacher", "cut"], ["cut", "teacher", "student", "other"])
    ]
    assert found == [{"teacher", "student"}, {"baseline", "teacher", "student", "third"}]


def test_parts_of_text_are_as_dark_as_their_numbers_and_escaped() -> None:
    block = Shaded([("if", 0.2), (" <a>", 0.6), ("\n", 1.0)], "why")
    assert block.levels() == [("if", 0), (" <a>", 4), ("\n", 8)]
    assert Shaded([("a", 0.5)]).levels() == [("a", 0)]
    sections = [Section("Where", [block])]
    html = to_html("t", "s", ("done", "good"), sections)
    assert '<span class="h0">if</span><span class="h4"> &lt;a&gt;</span>' in html
    assert "```text\nif <a>\n```" in to_markdown("t", "s", sections)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_colour_levels_cover_the_values_in_order(values: list[float]) -> None:
    grid = np.array([values])
    edges = level_edges(grid)
    assert len(edges) == LEVELS + 1
    assert (np.diff(edges) > 0).all() or np.ptp(grid) < 1e-9 * max(abs(grid).max(), 1e-300) * 1e6
    assert edges[0] <= grid.min() + 1e-6 * abs(grid.min())
    assert edges[-1] >= grid.max() - 1e-6 * abs(grid.max())


def test_replaced_layers_come_from_the_plan_until_a_stage_decides(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")

    def replaced() -> set[str]:
        (section,) = sections(read_run(run))
        strip = section.blocks[1]
        assert isinstance(strip, Strip)
        assert len(strip.cells) == 30
        return {name for name, on in strip.cells if on}

    assert replaced() == {f"blocks.{i}" for i in range(1, 30, 3)}
    (run.student / "config.json").unlink()
    assert len(replaced()) == 30
    plan = make_plan()
    plan["student"]["sites"] = ["blocks.3", "blocks.12"]
    run.plan.write_text(json.dumps(plan))
    assert replaced() == {"blocks.3", "blocks.12"}


def test_a_family_without_layers_has_no_layers_in_its_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan = make_plan()
    plan["teacher"]["facts"] = {"arch": "hash"}
    run.plan.write_text(json.dumps(plan))
    assert sections(read_run(run)) == []


@pytest.mark.parametrize(
    ("profiles", "said"), [(["cpu", "npu"], "every export matches it"), ([], "nothing was exported")]
)
def test_the_verdict_does_not_praise_exports_that_are_not_there(tmp_path: Path, profiles: list[str], said: str) -> None:
    run = make_run(tmp_path / "run")
    plan = make_plan()
    plan["config"]["export"]["profiles"] = profiles
    run.plan.write_text(json.dumps(plan))
    assert outcome_of(read_run(run)).headline.endswith(said)


def test_a_gate_on_a_missing_figure_is_a_problem(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan = make_plan()
    plan["config"]["gates"]["perplexty"] = {"max": 1.0}
    run.plan.write_text(json.dumps(plan))
    outcome = outcome_of(read_run(run))
    assert not outcome.good
    assert "gates.perplexty" in outcome.gate_problem
    assert [g.passed for g in outcome.gates] == [True, True]


def test_the_card_is_valid_and_its_code_compiles(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    card = model_card(read_run(run))
    _, front, body = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert facts["pipeline_tag"] == "text-generation"
    assert facts["license"] == "apache-2.0"
    (result,) = ModelCardData(**facts, ignore_metadata_errors=False).eval_results[:1]
    assert (result.metric_type, result.metric_value) == ("perplexity", pytest.approx(34.16, abs=0.01))
    codes = re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)
    assert len(codes) == 1
    ast.parse(codes[0])
    for title in ("Quality", "Size and speed", "Samples", "Limits", "Use", "How it was made", "Licence", "Citation"):
        assert f"\n## {title}\n" in body, title
    assert "https://arxiv.org/abs/2408.10189" in body
    assert "| perplexity (per token) | 34.16 | 32.18 | 39.88 |" in body


def test_a_trial_has_no_headline_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "student perplexity" in [tile.label for tile in tiles_of(run)]
    plan = make_plan()
    plan["config"]["tiny"] = True
    run.plan.write_text(json.dumps(plan))
    labels = [tile.label for tile in tiles_of(run)]
    assert "student parameters" in labels
    assert not {"student perplexity", "KL"} & set(labels)


def tiles_of(run: RunDir) -> list[Tile]:
    return [tile for block in verdict(read_run(run)).blocks if isinstance(block, Tiles) for tile in block.tiles]


def test_labels_of_an_axis_differ() -> None:
    assert Ticks().format_ticks([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]
    assert Ticks().format_ticks([29.05, 29.1, 29.15]) == ["29.05", "29.1", "29.15"]


def test_figures_before_and_after_a_stage_share_a_scale_and_stages_do_not(tmp_path: Path) -> None:
    def numbers(*values: float) -> dict[str, float]:
        return {f"blocks.{i}": value for i, value in enumerate(values)}

    init = {"relative_error_before": numbers(0.9, 0.8), "relative_error": numbers(0.2, 0.1)}
    stages = {"01-init": {"per_site": init}, "02-refit": {"per_site": {"relative_error": numbers(0.3, 0.4)}}}
    section = per_site(RunInfo(tmp_path, stages=stages))
    assert section is not None
    heat = [f for block in section.blocks if isinstance(block, Figures) for f in block.figures]
    assert [f.caption for f in heat] == ["01-init: relative error"]
    assert "before 0.8500, after 0.1500" in heat[0].text
    assert [block.caption for block in section.blocks if isinstance(block, Figure)] == ["02-refit: relative error"]


def test_a_loss_over_sites_is_their_mean_and_names_what_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    section = training(read_run(run))
    assert section is not None
    captions = [f.caption for block in section.blocks if isinstance(block, Figures) for f in block.figures]
    assert any(re.match(r"03-hidden: loss \(l2; mean over 30 sites\) ", caption) for caption in captions)
    assert any(caption.startswith("04-logits: loss (kl) ") for caption in captions)


def test_the_author_words_the_card(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan = make_plan()
    said = {"title": "Mine", "base_model": "me/mine", "language": ["de"], "limits": "Not for medicine."}
    plan["config"]["report"] = said
    run.plan.write_text(json.dumps(plan))
    card = model_card(read_run(run))
    facts = yaml.safe_load(card.split("---\n")[1])
    assert (facts["base_model"], facts["language"]) == ("me/mine", ["de"])
    assert "\n# Mine\n" in card
    assert "- Not for medicine." in card


def test_a_card_without_a_licence_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan = make_plan()
    plan["teacher"]["details"] = {}
    run.plan.write_text(json.dumps(plan))
    card = model_card(read_run(run))
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "unknown"
    assert "states no licence" in card
