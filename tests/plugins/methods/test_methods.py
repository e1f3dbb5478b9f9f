"""Methods as folders: registered by being there, planned and run for a family whose names they do not know."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import xarch
import xarch_methods
from xarch.config.load import load_config
from xarch.config.method import read_method
from xarch.registry.loader import get_registry
from xarch_decoder.family import DecoderFamily

FOLDERS = sorted(path.parent for path in Path(xarch_methods.__file__).parent.glob("*/method.yaml"))
NAMES = [folder.name.replace("_", "-") for folder in FOLDERS]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, family = tmp_path_factory.mktemp("methods"), DecoderFamily()
    return {
        "teacher": family.tiny_teacher(folder),
        "student.target": "dm2",
        **family.tiny_run(folder),
        "runtime.threads": 1,
        "runtime.device": "cpu",
        "runtime.tensorboard": False,
        "export.profiles": [],
        "evaluate.samples": 2,
        "budget": 20_000,
        "tiny": True,
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_a_folder_is_a_method(folder: Path) -> None:
    name = folder.name.replace("_", "-")
    spec = get_registry().get("method", name)
    text = (folder / "method.yaml").read_text(encoding="utf-8")
    head = read_method(text, name)
    assert (spec.plugin, spec.summary, list(spec.accepts)) == ("methods", head.summary, head.families)
    assert head.summary
    assert len(text.splitlines()) <= 40
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"xarch convert --method {name} " in readme
    assert not head.paper or head.paper in readme
    assert not head.control or get_registry().has("method", head.control)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_moved_towards_rare_classes_does_not_decide_what_is_kept(name: str) -> None:
    """A margin or weights raise the loss of a student that got better: `ldam-drw-sam` once undid its whole training."""
    for stage in load_config(name).config.stages.values():
        settings = stage.model_dump(mode="json", by_alias=True)
        moved = ("ldam", "logit-adjustment", "effective-number", "inverse", "reweight")
        used = json.dumps([settings["matches"], settings["phases"]])
        if any(f'"{word}"' in used or f".{word}" in used for word in moved):
            assert stage.validation is not None
            assert stage.validation.metric == "balanced_accuracy"


def test_registering_them_reads_no_yaml_and_imports_no_torch() -> None:
    program = (
        "import sys; from xarch.registry.declare import Declarations; import xarch_methods as m; "
        "r = Declarations('methods'); m.xarch_register(r); "
        "assert len(r.specs) >= 4; sys.exit(1 if {'yaml', 'torch'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("kd", {"kd": "logits", "labels": "batch:input_ids"}),
        ("no-teacher", {"labels": "batch:input_ids"}),
        ("random-teacher", {"kd": "random:logits", "labels": "batch:input_ids"}),
    ],
)
def test_names_of_the_family_stand_in_the_plan(name: str, want: dict[str, str], start: dict[str, Any]) -> None:
    (stage,) = xarch.plan(overrides={"recipe": name, **start}).stages
    assert {m.label: m.right for m in stage.matches} == want
    assert {m.units for m in stage.matches} == {"nats/token"}


@pytest.mark.slow
def test_hints_are_learned_through_connectors_that_are_dropped(start: dict[str, Any], tmp_path: Path) -> None:
    run = xarch.convert(overrides={"recipe": "hint", **start}, out=tmp_path / "run")
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    hints = [row for row in rows if row["stage"].endswith("hints") and "loss" in row]
    assert {"match.hint.blocks.0.output", "match.hint.blocks.1.output"} <= hints[0].keys()
    assert hints[-1]["loss"] < hints[0]["loss"]
    plan = json.loads((run.path / "plan.json").read_text())
    assert plan["stages"][0]["trains"]["connectors"] == 2 * (32 * 32 + 32)
    with safe_open(run.path / "student" / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) <= set(xarch.load(run.path).state_dict())
