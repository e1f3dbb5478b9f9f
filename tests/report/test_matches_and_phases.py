"""Figures of several matches, and the beginnings of phases, in the report of a run."""

from __future__ import annotations

import re
from pathlib import Path

from xarch.report.files import RunInfo, StageMetrics
from xarch.report.sections.per_site import per_site
from xarch.report.sections.training import training

SITES = ("blocks.0", "blocks.1")
PLAN = {
    "unit": "row",
    "stages": [
        {
            "folder": "01-align",
            "name": "align",
            "steps": 10,
            "units": 100,
            "matches": [{"match": m, "label": m, "site": s} for m in ("mixers", "outputs") for s in SITES],
        }
    ],
    "config": {"stages": {"align": {"phases": [{"from": 0.7, "set": {}}, {"from": 0.3, "set": {}}]}}},
}


def _run(folder: Path, **more: object) -> RunInfo:
    error = {f"{match}.{site}": float(i + 1) for i, match in enumerate(("mixers", "outputs")) for site in SITES}
    stages = {"01-align": {"per_site": {"relative_error": error}}}
    return RunInfo(folder, plan=PLAN, stages=stages, **more)  # type: ignore[arg-type]


def test_every_match_has_a_panel_of_its_own(tmp_path: Path) -> None:
    """Both matches stood on one axis, as if they were sites."""
    section = per_site(_run(tmp_path))
    assert section is not None
    captions = [block.caption for block in section.blocks if block.kind == "figure"]
    assert [re.sub(r".*: ", "", text) for text in captions] == [
        "relative error of mixers",
        "relative error of outputs",
    ]
    texts = [block.text for block in section.blocks if block.kind == "figure"]
    assert all("of 2 sites" in text and "(blocks." in text for text in texts)


def test_the_beginnings_of_phases_are_marked(tmp_path: Path) -> None:
    metrics = StageMetrics()
    metrics.values["loss"] = [(step, 1.0 / step) for step in range(1, 11)]
    plain = training(_run(tmp_path, metrics={"02-other": metrics}))
    marked = training(_run(tmp_path, metrics={"01-align": metrics}))
    assert plain is not None
    assert marked is not None
    [without], [figure] = plain.blocks[0].figures, marked.blocks[0].figures  # type: ignore[union-attr]
    assert "phases begin at step 3, 7" in figure.text
    assert figure.svg.count("stroke-dasharray") == without.svg.count("stroke-dasharray") + 2


def test_figures_of_a_match_of_many_pairs_are_folded(tmp_path: Path) -> None:
    """Thirty layers with two rows each hid the rest of the page."""
    many = {f"match.hints.decoder.{layer}.output": 0.1 for layer in range(30)}
    stages = {"01-all": {"metrics": {"loss": 0.5, "match.kd": 0.2, **many}}}
    section = training(RunInfo(tmp_path, plan=PLAN, stages=stages))
    assert section is not None
    table, folded = section.blocks
    assert [row[1] for row in table.rows] == ["loss", "kd"]  # type: ignore[union-attr]
    assert [len(block.rows) for block in folded.blocks] == [30]  # type: ignore[union-attr]


def test_a_match_of_the_whole_model_is_no_site(tmp_path: Path) -> None:
    """The report drew one bar, "of 1 sites", under the name of the match."""
    stage = {"folder": "01-all", "name": "all", "matches": [{"match": "kd", "label": "kd", "site": None}]}
    stages = {"01-all": {"per_site": {"agreement": {"kd": 0.97}}}}
    section = per_site(RunInfo(tmp_path, plan={**PLAN, "stages": [stage]}, stages=stages))
    assert section is not None
    [details] = section.blocks
    assert details.blocks[0].rows == [["01-all", "kd", "agreement", "0.9700"]]  # type: ignore[union-attr]
