"""A teacher with another tokenizer distils into an encoder-decoder: planned, proven and trained through the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import xarch
from tests.plugins.text.two_tokenizers import byte_level, pieces
from xarch import PlanError
from xarch_decoder.testing import tiny_llama
from xarch_encdec.testing import tiny_pairs

FILE = "model.safetensors"
PLACES = {"own": "batch:bridge_own", "theirs": "batch:bridge_theirs"}
WORDS = {**PLACES, "words": "batch:bridge_words"}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A conversion with a second teacher whose tokenizer is of another kind."""
    for name, tokenizer in (("own", byte_level(2)), ("big", pieces())):
        tiny_llama(tmp_path / name, layers=2, seed=len(name))
        tokenizer.save_pretrained(tmp_path / name)
    # Predictions of a random model are flat; the head, which is the embedding, makes them sharp.
    weights = load_file(tmp_path / "big" / FILE)
    save_file({name: w * (20.0 if "embed" in name else 1.0) for name, w in weights.items()}, tmp_path / "big" / FILE)
    right = {"student": "logits", "teacher": "big:logits", "mask": "batch:bridge_mask"}
    return {
        "teacher": f"hf:{tmp_path / 'own'}",
        "teachers": {"big": {"ref": f"hf:{tmp_path / 'big'}"}},
        "student.target": "encdec",
        "data.ref": tiny_pairs(tmp_path / "pairs.jsonl", pairs=80),
        "data.options": {"bridge": "big"},
        "data.sample": {"source": 64, "target": 24},
        "budget": 1000,
        "stages.cross.skip": True,
        "stages.hints.skip": True,
        "stages.all.validation": None,
        "stages.all.matches.map": {**right, "objective": "vocab-map", "aux": WORDS},
        "stages.all.matches.sorted": {**right, "objective": "uld", "aux": PLACES},
        "evaluate.samples": 2,
        "evaluate.controls": False,
        "export.profiles": [],
        "runtime": {"device": "cpu", "threads": 1, "tensorboard": False},
    }


def test_the_plan_proves_its_matches(settings: dict[str, Any]) -> None:
    plan = xarch.plan(overrides=settings)
    matches = {match.match: match for match in plan.stages[-1].matches}
    assert {matches[name].objective for name in ("map", "sorted")} == {"vocab-map", "uld"}
    del settings["data.options"]
    with pytest.raises(PlanError, match="bridge"):
        xarch.plan(overrides=settings)


@pytest.mark.slow
def test_both_losses_fall(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"stages.all.matches.kd": None, "stages.all.matches.gold": None, "budget": 40000}
    run = xarch.convert(overrides={**settings, "stages.all.optimiser.lr": 3e-3}, out=tmp_path / "run")
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for name in ("match.map", "match.sorted"):
        found = [row[name] for row in rows if name in row]
        assert sum(found[-5:]) < 0.97 * sum(found[:5]), (name, found[:5], found[-5:])
