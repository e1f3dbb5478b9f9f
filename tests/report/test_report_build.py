"""The report of finished, failed, partial, damaged and hostile runs."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from markdown_it import MarkdownIt

from tests.report.page_check import check_page
from tests.report.run_folders import make_eval, make_parity, make_plan, make_run
from xarch.files.run_dir import RunDir
from xarch.report import Image
from xarch.report.blocks import Tiles
from xarch.report.build import DETAILS, RESULT, build_report
from xarch.report.files import clean, read_run
from xarch.report.sections import over_time, per_site, quality, training
from xarch.report.sections.verdict import verdict

SHOWN = [*(name for name, _ in RESULT), "Layers", *(name for name, _ in DETAILS)]
"""Those of the core, with the family's between what came out and the details."""


def put(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


def built(run: RunDir) -> Any:
    build_report(run)
    assert run.report_md.read_text(encoding="utf-8").strip()
    return check_page(run.report_html)


PICTURES = {per_site: ("heat_svg", "sites_svg"), over_time: ("over_time_svg",), quality: ("comparison_svg",)}
PICTURES |= {training: ("curve_svg",)}
DRAWN: dict[str, tuple[Any, str | None]] = {}


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of figures that an earlier test has drawn are not drawn again: they take most of a report's time."""

    def once(draw: Callable[..., str | None]) -> Callable[..., str | None]:
        def drawn(*given: Any, **named: Any) -> str | None:
            key = repr((draw.__name__, given, named))
            if key not in DRAWN:
                # The arguments are kept, for among them are functions, which repr tells apart by their address.
                DRAWN[key] = ((given, named), draw(*given, **named))
            return DRAWN[key][1]

        return drawn

    for module, names in PICTURES.items():
        for name in names:
            monkeypatch.setattr(module, name, once(getattr(module, name)))


def test_a_finished_run_has_every_section(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = built(run)
    assert page.headings == SHOWN
    for text in (
        "Done: the student passes both quality gates and every export matches it",
        "34.16",
        "teacher 32.18",
        "106\u00a0% of the teacher's",
        "32.2 tokens/s",
        "10 of 30 layers replaced",
        "mixer: mixer_out (l2), 30 pairs",
        "blocks.*.mixers.dm2.in_proj.weight",
        "skipped not utf8",
        "Skipped 3 of 243 (1.23\u00a0%)",
        "AMD EPYC 7B13",
        "xarch convert mohawk --set budget=320000 --out runs/demo",
        "From 94.00 to 35.10. Share of the total gain: "
        "50\u00a0% after 2\u00a0m\u00a042\u00a0s, 90\u00a0% after 6\u00a0m\u00a042\u00a0s",
        "teacher 32.18; before training 39.88",
        "Directory tree generator.",
    ):
        assert text in page.text, text
    assert page.text.count("✓") == 0
    markdown = run.report_md.read_text(encoding="utf-8")
    assert [line[3:] for line in markdown.splitlines() if line.startswith("## ")] == SHOWN
    assert "student perplexity: **34.16**" in markdown
    assert "□■□□■□" in markdown
    assert (run.student / "README.md").read_text(encoding="utf-8").startswith("---\nlibrary_name: xarch")


@pytest.mark.slow
def test_the_page_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    build_report(first)
    build_report(second)
    build_report(second)
    for name in ("report.html", "report.md", "student/README.md"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


def test_pictures_follow_the_theme(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    build_report(run)
    html = run.report_html.read_text(encoding="utf-8")
    svgs = html.split("<svg")[1:]
    assert len(svgs) == 12
    defined = {line.split(":")[0].strip() for part in html.split("--")[1:] if ":" in (line := part[:20])}
    for svg in svgs:
        body = svg.split("</svg>")[0]
        used = {part.split(")")[0] for part in body.split("var(--")[1:]}
        assert used
        assert used <= defined
        assert "#0" not in body


def failed(run: RunDir, reason: str) -> RunDir:
    put(run.status, {"state": "failed", "reason": reason, "resume": "xarch convert --resume --out runs/demo"})
    return run


def test_measures_of_the_parity_gate_are_shown_with_their_limits(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    parity = make_parity()
    parity["graphs"]["prefill_64"]["measures"]["psnr"]["value"] = 41.5
    put(run.export_dir / "cpu" / "parity.json", parity)
    built(run)
    rows = [line.replace("\\", "") for line in run.report_md.read_text(encoding="utf-8").splitlines()]
    assert "| ok | cpu | decode_1 | PSNR | 71.25 dB | ≥ 60 |" in rows
    assert "| ok | cpu | decode_1 | word errors | 0.01250 | ≤ 0.05 |" in rows
    assert "| missed | cpu | prefill_64 | PSNR | 41.50 dB | ≥ 60 |" in rows


def test_a_curve_of_numbers_that_are_none_draws_what_it_can(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in run.curve.read_text().splitlines()]
    rows[3]["seconds"] = rows[-1]["student"]["perplexity"] = float("nan")
    rows[4]["seconds"] = None
    run.curve.write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = built(run)
    assert page.headings == SHOWN
    run.curve.write_text(json.dumps(rows[0]) + "\n")
    assert "Quality over time" not in built(run).headings


def test_a_stage_that_ended_early_says_where_and_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    file = run.stages_dir / "03-hidden" / "summary.json"
    ended = {"step": 40, "steps": 100, "units": 81_920, "reason": "plateau"}
    put(file, {**json.loads(file.read_text()), "steps": 40, "units": 81_920, "ended": ended})
    page = built(run)
    assert "40 of 100 (plateau)" in page.text
    assert "stopped at step 40 of 100: plateau" in page.text


@pytest.mark.parametrize(
    ("teacher", "shown"),
    [
        ({"graphs": {"points": {"throughput": {"unit": "points", "per_second": 210_000}}}, "speed_up": {"points": 2.0}},
         "210 k points/s | 2.00×"),
        ({"graphs": {"points": {"throughput": {"unit": "points", "per_second": 210_000}}}, "dtype": "float32"},
         "210 k points/s, float32 | –"),
        ({"absent": "it needs BitwiseXor"}, "none: it needs BitwiseXor | –"),
        ({}, "– | –"),
    ],
)  # fmt: skip
def test_speeds_are_shown_beside_the_teachers(teacher: dict[str, Any], shown: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rate = {"unit": "points", "per_call": 16_384, "per_second": 420_000.0}
    put(run.bench_dir / "cpu.json", {"graphs": {"points": {"p50_ms": 39.0, "throughput": rate}}, "teacher": teacher})
    page = built(run)
    assert "420\xa0k points/s" in page.text
    rows = [line.replace("\\", "").replace("\xa0", " ") for line in run.report_md.read_text("utf-8").splitlines()]
    assert f"| cpu | points | 420 k points/s | {shown} |" in rows


def test_many_figures_of_parts_are_folded_away(tmp_path: Path) -> None:
    """The recall of ten classes would hide the figures of the whole."""
    run = make_run(tmp_path / "run")
    evaluation = make_eval()
    for side in (evaluation["teacher"], evaluation["student"]):
        side |= {f"recall.{k}": 0.5 for k in range(5)}
    put(run.eval_json, evaluation)
    html = built(run) and run.report_html.read_text(encoding="utf-8")
    assert "5 figures of parts" in html
    assert html.index("perplexity ratio") < html.index("5 figures of parts") < html.index("recall.4")


def test_a_parity_failure_names_the_gate_and_the_way_on(tmp_path: Path) -> None:
    run = failed(make_run(tmp_path / "run"), "parity: graph 'decode_1': rel_l2 is 0.021, limit 0.0001")
    shutil.rmtree(run.bench_dir)
    shutil.rmtree(run.export_dir / "npu")
    put(run.export_dir / "cpu" / "parity.json", make_parity(False))
    (run.export_dir / "cpu" / "decode_1.onnx.rejected").write_text("x")
    page = built(run)
    assert "Parity gate missed" in page.text
    assert "xarch convert --resume --out runs/demo" in page.text
    assert "decode_1.onnx.rejected" in page.text
    assert "rel_l2 is 0.021, limit 0.0001" in page.text
    assert "Latency" not in page.headings
    html = run.report_html.read_text(encoding="utf-8")
    assert '<li class="failed">export cpu' in html
    assert '<li class="open">bench cpu' in html
    assert '<li class="done">quality gates' in html
    assert "export on disk" not in page.text
    assert "✗ export cpu → · bench cpu → · export npu" in run.report_md.read_text(encoding="utf-8")
    assert "ONNX for" not in (run.student / "README.md").read_text(encoding="utf-8")


def test_a_missed_quality_gate_is_shown_with_its_limit(tmp_path: Path) -> None:
    run = failed(make_run(tmp_path / "run"), "quality: the student misses a gate: kl is 0.4, wanted <= 0.3")
    evaluation = make_eval()
    evaluation["gated"]["kl"] = evaluation["student"]["kl"] = 0.4
    put(run.eval_json, evaluation)
    for folder in (run.export_dir, run.bench_dir):
        shutil.rmtree(folder)
    page = built(run)
    assert "Quality gate missed" in page.text
    html = run.report_html.read_text(encoding="utf-8")
    assert '<span class="bad">missed</span>' in html
    assert '<li class="failed">quality gates <small>1 of 2 passed</small>' in html
    assert {"Parity", "Export", "Latency"}.isdisjoint(page.headings)


def test_a_run_that_diverged_in_a_stage(tmp_path: Path) -> None:
    run = failed(make_run(tmp_path / "run"), "diverged: loss is nan in stage hidden at step 12 of 100")
    for item in (
        run.stages_dir / "03-hidden",
        run.stages_dir / "04-logits",
        run.student,
        run.export_dir,
        run.bench_dir,
    ):
        shutil.rmtree(item)
    run.eval_json.unlink()
    with open(run.metrics, "a", encoding="utf-8") as f:
        f.write('{"stage": "03-hidden", "step": 101, "units": 206848, "loss": NaN}\n{"stage": "03-hid')
    page = built(run)
    assert "Training diverged (NaN or Inf)" in page.text
    assert "1 lines could not be read" in page.text
    assert '<li class="failed">hidden' in run.report_html.read_text(encoding="utf-8")
    assert "Training" in page.headings
    assert not run.student.exists()


@pytest.mark.parametrize(
    ("state", "text"),
    [("interrupted", "Interrupted; it can be resumed"), ("running", "Not finished"), ("planned", "not started")],
)
def test_unfinished_states(tmp_path: Path, state: str, text: str) -> None:
    run = make_run(tmp_path / "run")
    put(run.status, {"state": state, "reason": "", "resume": "xarch convert --resume --out runs/demo"})
    shutil.rmtree(run.student)
    page = built(run)
    assert text in page.text
    assert "xarch convert --resume" in page.text


def test_a_trial_run_says_that_its_figures_mean_nothing(tmp_path: Path) -> None:
    plan = make_plan()
    plan["config"]["tiny"] = True
    run = make_run(tmp_path / "run")
    put(run.plan, plan)
    page = built(run)
    assert "Trial run done" in page.text
    assert "passed" not in page.text.split("What was converted")[1].split("Layers")[0]
    assert "Do not use it" in (run.student / "README.md").read_text(encoding="utf-8")


PARTS = [
    "config.yaml",
    "plan.json",
    "run.json",
    "status.json",
    "metrics.jsonl",
    "curve.jsonl",
    "stages",
    "stages/02-choose",
    "stages/03-hidden/summary.json",
    "student",
    "eval.json",
    "export",
    "export/cpu/parity.json",
    "export/npu/profile.json",
    "bench",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_costs_its_sections_only(tmp_path: Path, part: str) -> None:
    run = make_run(tmp_path / "run")
    path = run.path / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = built(run)
    assert "Verdict" in page.headings
    assert len(page.headings) >= len(SHOWN) - 5
    assert "Notes" not in page.headings


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    page = built(RunDir(tmp_path))
    assert "This folder contains no plan" in page.text


FILES = [p for p in PARTS if p.endswith((".json", ".jsonl"))] + ["bench/cpu.json", "student/config.json"]


@pytest.mark.parametrize("part", FILES)
def test_a_damaged_file_costs_its_sections_only(tmp_path: Path, part: str) -> None:
    run = make_run(tmp_path / "run")
    (run.path / part).write_text('{"stages": 5, "eval": [], "tables": ')
    page = built(run)
    assert "Verdict" in page.headings
    assert f"{part} is not valid JSON" in page.text or f"{part}: 1 lines could not be read" in page.text


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", "null", '"text"', "\x00\xff", '{"stages": 5, "eval": [], "teacher": 1}']
)
def test_nothing_but_damage_still_gives_a_page(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path / "run")
    for part in FILES:
        (run.path / part).write_text(content, encoding="latin-1")
    assert "Verdict" in built(run).headings


def wrong(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value in which some parts have another type or are gone."""
    if draw.random() < 0.05:
        return draw.choice([None, [], {}, "x", -1, 0, True, 1e308, [[]], {"a": {}}, ["a"], "9" * 30, 0.5, [1], [{}]])
    if isinstance(value, dict):
        return {k: wrong(v, draw) for k, v in value.items() if draw.random() > 0.03}
    if isinstance(value, list):
        return [wrong(v, draw) for v in value[:3]]
    return value


@pytest.mark.parametrize("seed", range(12))
def test_no_content_of_the_files_can_break_the_report(tmp_path: Path, seed: int) -> None:
    run, draw = make_run(tmp_path / "run"), random.Random(seed)
    for path in run.path.rglob("*.json"):
        put(path, wrong(json.loads(path.read_text()), draw))
    rows = [wrong(json.loads(line), draw) for line in run.curve.read_text().splitlines()]
    run.curve.write_text("".join(json.dumps(r) + "\n" for r in rows))
    built(run)


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style></svg></pre></title><h1>owned</h1>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}$ & ]]> <!-- ",
    "](javascript:alert(1)) ![x](http://example.org/x.png) `code` | cell",
    "```\n# out of the fence\n",
    "\u202eevil\u0000\ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_strings_of_teachers_and_data_are_only_text(tmp_path: Path, text: str) -> None:
    """Every string and every name in every file is replaced; only what the report branches on stays."""
    keep = {
        "state",
        "kind",
        "scope",
        "folder",
        "metric",
        "target",
        "profile",
        "sites",
        "perplexity",
        "loss",
        "kl",
        "facts",
        "profiles",
        "name",
        "family",
        "undone",
    }
    run = make_run(tmp_path / "run")

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            return value if key in keep else f"{value}{text}"
        if isinstance(value, list):
            return [spoil(v, key) for v in value]
        if isinstance(value, dict):
            names = key in (
                "per_site",
                "versions",
                "plugins",
                "baselines",
                "trains",
                "ops",
                "kl",
                "relative_error",
                "size",
            )
            return {(k + text if names and k not in keep else k): spoil(v, k) for k, v in value.items()}
        return value

    for path in [*run.path.rglob("*.json")]:
        put(path, spoil(json.loads(path.read_text(encoding="utf-8"))))
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    spoiled = [{(k + text if "." in k else k): v for k, v in {**r, "stage": r["stage"] + text}.items()} for r in rows]
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in spoiled), encoding="utf-8")
    rows = [spoil(json.loads(line)) for line in run.curve.read_text(encoding="utf-8").splitlines()]
    run.curve.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    run.config.write_text(text, encoding="utf-8", errors="surrogatepass")
    page = built(run)
    assert run.report_html.read_text(encoding="utf-8").count("<h1") == 1
    assert page.headings == SHOWN
    assert clean(text).split("\n")[0][:12] in page.text
    tokens = MarkdownIt("commonmark").enable("table").parse(run.report_md.read_text(encoding="utf-8"))
    flat = [t for token in tokens for t in [token, *(token.children or [])]]
    assert {t.type for t in flat}.isdisjoint({"html_block", "html_inline", "link_open", "image"})
    after = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert after[1:] == SHOWN
    assert after[0]


SECTIONS = """
from xarch import hookimpl

PNG = {png!r}


@hookimpl
def xarch_register(registry):
    for name, accepts in (("good", ()), ("decoders", ("decoder",)), ("fields", ("radiance-field",)), ("bad", ()),
                          ("wrong", ()), ("broken", ())):
        registry.report(name, load=f"{{__name__}}:{{name}}", accepts=accepts)


def good(run):
    from xarch.report import Image, Markdown, Picture, Sample, Samples, Section, Table, bars

    text = "**bold** <b>raw</b>\\n\\n|a|b|\\n|-|-|\\n|1|2|\\n\\n[y](javascript:alert(1)) ![x](/b.png)"
    steps = run.metrics["03-hidden"].values["loss"]
    return [
        Section("Extra", [Markdown(text), Picture([Image(b"<svg><script>1</script></svg>")], "a drawing")]),
        Section("Seen", [Table(["what", "seen"], [["family", run.family], ["kl", str(run.eval["student"]["kl"])],
                         ["stages", str(len(run.stages))], ["steps", str(len(steps))], ["method", run.method]])]),
        Section("Looked at", [Samples([Sample(Image(PNG), (("student", Image(PNG, "its own")), ("teacher", "a cat")))]),
                              bars("scores", [("teacher", 0.9), ("student", 0.8)], "Scores")]),
    ]


def decoders(run):
    from xarch.report import Section, Text

    return [Section("For decoders", [Text(run.unit)])]


def fields(run):
    from xarch.report import Section

    return [Section("For fields")]


def bad(run):
    return 1 / 0


def wrong(run):
    return [{{"title": "a mapping"}}]


def broken(run):
    from xarch.report import Section, Table

    return [Section("Broken", [Table(["a"], [[None]])])]
"""


def test_plugins_add_sections_and_broken_ones_only_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """house rank 8: blocks with pictures instead of Markdown strings; what fails costs its section only."""
    from xarch.registry import loader

    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(buffer, "PNG")
    (tmp_path / "more_sections.py").write_text(SECTIONS.format(png=buffer.getvalue()))
    registry = loader.load_registry([str(tmp_path / "more_sections.py")])
    monkeypatch.setattr(loader, "get_registry", lambda: registry)
    run = make_run(tmp_path / "run")
    page = built(run)
    html = run.report_html.read_text(encoding="utf-8")
    added = ["Layers", "For decoders", "Extra", "Seen", "Looked at"]
    at = page.headings.index("Layers")
    assert sorted(page.headings[at : at + 5]) == sorted(added)
    assert "For fields" not in page.headings
    assert "<strong>bold</strong> &lt;b&gt;raw&lt;/b&gt;" in html
    assert "<td>1</td>" in html
    assert 'src="data:image/svg+xml;base64,' in html
    assert html.count('src="data:image/png;base64,') == 2
    assert "its own" in page.text
    markdown = run.report_md.read_text(encoding="utf-8").replace("\\", "")
    for row in ("family | decoder", "kl | 0.1187", "stages | 4", "steps | 100", "method | mohawk"):
        assert f"| {row} |" in markdown
    assert "Scores: teacher 0.9000, student 0.8000." in markdown
    notes = page.text.split("Notes")[-1]
    assert "ZeroDivisionError" in notes
    assert "report section must be a xarch.report.Section, got dict" in notes
    assert "report 'broken'" in notes
    assert {"Broken", "a mapping"}.isdisjoint(page.headings)


def test_an_image_is_a_file_of_a_known_kind() -> None:
    with pytest.raises(ValueError, match="PNG, JPEG or SVG"):
        Image(b"<html>")


def test_pictures_of_samples_come_from_the_run_folder_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / "samples").mkdir()
    for file in (run.path / "samples" / "0.png", tmp_path / "outside.png"):
        PIL.Image.new("RGB", (2, 2)).save(file)
    evaluation = make_eval()
    evaluation["samples"] = [
        {"input": "samples/0.png", "student": "a cat"},
        {"input": "../outside.png", "student": "a dog"},
        {"input": "samples/none.png", "student": "a cow"},
    ]
    put(run.eval_json, evaluation)
    page = built(run)
    assert run.report_html.read_text(encoding="utf-8").count('src="data:image/png;base64,') == 1
    assert "a cat" in page.text
    assert "a dog" not in page.text
    assert "a cow" not in page.text


def test_a_stage_that_was_undone_is_not_shown_as_done(tmp_path: Path) -> None:
    """An undone stage changed nothing: neither steps, table nor card may show it as done."""
    run = make_run(tmp_path / "run")
    file = run.stages_dir / "04-logits" / "summary.json"
    put(file, {**json.loads(file.read_text()), "undone": "validation got worse: 2.1 to 2.3"})
    page = built(run)
    html = run.report_html.read_text(encoding="utf-8")
    assert '<li class="undone">logits' in html
    assert '<li class="done">logits' not in html
    assert "rolled back: validation got worse: 2.1 to 2.3" in page.text
    assert "03-hidden | loss | 0\\.8420" in run.report_md.read_text(encoding="utf-8"), "what was validated"
    assert "rolled back: validation got worse" in (run.student / "README.md").read_text(encoding="utf-8")
    assert "↶ logits (rolled back)" in run.report_md.read_text(encoding="utf-8")


def test_what_was_not_checked_is_not_shown_as_ok(tmp_path: Path) -> None:
    """vision 2.11: an export that could not be tried while planning stood as "ok"."""
    run = make_run(tmp_path / "run")
    built(run)
    assert "| export npu | the family has no small copy | not checked |" in run.report_md.read_text(encoding="utf-8")


def test_gates_are_those_that_the_engine_reads(tmp_path: Path) -> None:
    """house A2 (c): a missed gate can never stand below a headline that says it was passed."""
    run = make_run(tmp_path / "run")
    plan = make_plan()
    plan["config"]["gates"]["kl"]["max"] = 1e-12
    put(run.plan, plan)
    page = built(run)
    assert "Done, but the student misses 1 of 2 quality gates: kl" in page.text
    assert "passes both" not in page.text


@pytest.mark.parametrize(("higher", "named"), [(False, "strong 35.00"), (True, "weak 60.00")])
def test_a_headline_stands_beside_the_best_baseline(higher: bool, named: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    found = make_eval()
    row = found["baselines"]["before training"]
    found["baselines"] = {"weak": {**row, "perplexity": 60.0}, "strong": {**row, "perplexity": 35.0}}
    put(run.path / "eval.json", {**found, "metric": "perplexity", "higher_is_better": higher})
    tiles = next(block for block in verdict(read_run(run)).blocks if isinstance(block, Tiles))
    assert tiles.tiles[0].note.endswith(f"; {named}")
