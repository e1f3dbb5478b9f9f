"""A run that is killed while its student writes answers and its encoder opens goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import xarch
from xarch.engine.events import Reporter
from xarch_decoder.testing import tiny_llama
from xarch_encdec.testing import tiny_pairs

pytestmark = pytest.mark.slow

STEPS, KILLED = 12, 8


class Kill(Reporter):
    """Kills its process between two checkpoints, which are written every five steps."""

    def step(self, step: int, steps: int, metrics: Any, units: int) -> None:
        if step == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    steps = {"open-encoder": {"last": {"finish": 0.9}}, "write-answers": {"share": 0.6, "top_k": 20}}
    return {
        "recipe": "encdec-equal",
        "teacher": tiny_llama(tmp_path / "llama", layers=2),
        "data.ref": tiny_pairs(tmp_path / "pairs.jsonl"),
        "data.options": {"tokenizer": "bytes"},
        "data.sample": {"source": 48, "target": 16},
        "budget": STEPS * 4 * 64,
        "stages.all.batch": {"size": 4, "steps": steps},
        "stages.all.matches.gold.mask": "batch:gold_mask",
        "stages.all.checkpoint_every": 5,
        "stages.all.log_every": 1,
        "stages.all.validation": None,
        "evaluate": {"samples": 2, "baseline": False, "controls": False},
        "export.profiles": [],
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "runtime.tensorboard": False,
    }


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "per_second", "eta")
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in found if "loss" in row]


def test_a_killed_run_writes_the_same_answers_and_opens_as_far(settings: dict[str, Any], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    child = os.fork()
    if child == 0:
        xarch.convert(overrides=settings, out=broken, reporter=Kill())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the run was not killed"
    xarch.convert(resume=True, out=broken)
    xarch.convert(overrides=settings, out=whole)
    one, two = (load_file(run / "student" / "model.safetensors") for run in (whole, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert rows(whole) == rows(broken)
    assert sum(row["written"] > 0 for row in rows(whole)) >= STEPS // 2, "too few answers were written"
    assert one["opening"].tolist() == [1.0, 1.0]
    opened = [row["memory_last"] for row in rows(whole)]
    assert 0 < opened[KILLED] < 1, "killed at a moment when nothing opens"
