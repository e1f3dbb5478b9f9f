"""The verdict is read from the files of a run, and nothing in it is made up."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from xarch.cli.verdict import run_document, show_verdict


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "r u n"
    put(path / "status.json", {"state": "done", "reason": "", "resume": ""})
    put(path / "plan.json", {"config": {"tiny": False, "gates": {"kl": {"max": 0.2}, "agreement": {"min": 0.9}}}})
    evaluation = {
        "metric": "perplexity",
        "higher_is_better": False,
        "unit": "",
        "teacher": {"perplexity": 10.0},
        "student": {"perplexity": 11.5},
        "baselines": {"before training": {"perplexity": 400.0}},
        "gated": {"kl": 0.3, "agreement": 0.95},
    }
    put(path / "eval.json", evaluation)
    cases = [{"outputs": {"logits": {"rel_l2": 2e-6}}}, {"outputs": {"logits": {"rel_l2": 3e-5}}}]
    measures = {"psnr": {"value": 71.25, "minimum": 60, "unit": "dB"}}
    graph = {"cases": cases, "top1_agreement": 0.999, "measures": measures}
    parity = {"passed": True, "graphs": {"decode_1": graph}}
    put(path / "export" / "cpu" / "parity.json", parity)
    put(path / "export" / "cpu" / "decode_1.onnx", "x" * 1500)
    put(path / "student" / "config.json", {"parameters": 12_345})
    put(path / "student" / "model.safetensors", "x" * 10)
    put(path / "report.html", "page")
    return path


def shown(path: Path) -> str:
    out = io.StringIO()
    show_verdict(run_document(path), Console(file=out, width=200))
    return out.getvalue()


def test_a_finished_run(run: Path) -> None:
    document = run_document(run)
    assert [(g["name"], g["passed"]) for g in document["gates"]] == [("kl", False), ("agreement", True)]
    assert document["export"]["cpu"]["worst_rel_l2"] == 3e-5
    text = shown(run)
    for line in (
        "perplexity, teacher",
        "11.5 (lower is better)",
        "400",
        "3e-05, top-1 agreement 0.999",
        "psnr, cpu decode_1",
        "71.25 dB, required at least 60 dB",
        "1.5 kB",
        "12.3 k",
    ):
        assert line in text
    assert "missed" in text
    assert f"next  xarch bench '{run}'" in text


def test_a_trial_shows_no_quality_and_an_export_how_it_runs(run: Path) -> None:
    runner = {"program": "go.py", "usage": "in.png", "packages": ["numpy"]}
    facts = {"profile": {"name": "cpu", "provider": "CPUExecutionProvider"}, "graphs": {}, "runner": runner}
    put(run / "export" / "cpu" / "profile.json", facts)
    assert f"next  python '{run / 'export' / 'cpu' / 'go.py'}' in.png" in shown(run)
    assert "1 graph, 1.5 kB" in shown(run)
    put(run / "plan.json", {"config": {"tiny": True}})
    text = shown(run)
    assert "the figures of a truncated model measure nothing" in text
    assert "11.5" not in text


def test_a_rejected_export(run: Path) -> None:
    (run / "export" / "cpu" / "decode_1.onnx").rename(run / "export" / "cpu" / "decode_1.onnx.rejected")
    parity = {"passed": False, "graphs": {"decode_1": {"cases": []}}}
    put(run / "export" / "cpu" / "parity.json", parity)
    put(run / "status.json", {"state": "failed", "resume": "xarch convert --resume --out x"})
    text = shown(run)
    assert "failed" in text
    assert "decode_1.onnx.rejected" in text
    assert "next  xarch convert --resume --out x" in text


def test_a_tiny_run_has_no_gates(run: Path) -> None:
    put(run / "plan.json", {"config": {"tiny": True}, "gates": {"kl": {"max": 0.2}}})
    assert run_document(run)["gates"] == []


def test_a_run_that_hardly_began(tmp_path: Path) -> None:
    document = run_document(tmp_path)
    assert document["evaluation"] is None
    assert document["student"] is None
    assert shown(tmp_path) == ""
