"""DeiT-LT step by step: what each token learns from, when mixing ends, and whose labels are weighted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import xarch
from xarch.config.schema import Stage
from xarch.matching.objectives.balance import class_weights
from xarch.matching.objectives.labels import HardLabel, LabelObjective
from xarch.testing.models import load_teacher, tiny_configuration
from xarch_image.testing import picture
from xarch_methods.long_tail import checks

EPOCHS, BATCH = 10, 7
COUNTS = [12, 6, 3]
STEPS = EPOCHS * sum(COUNTS) // BATCH
SWITCH = STEPS * 8 // 10


@dataclass
class Call:
    """What an objective saw: ``right`` are labels, probabilities or the teacher's logits."""

    student: Tensor
    right: Tensor
    images: Tensor
    options: dict[str, Any]


@dataclass
class Steps:
    """Every step of a run, by token, and its row of metrics."""

    teacher: str
    cls: list[Call]
    dist: list[Call]
    rows: list[dict[str, Any]]
    run: Path


def undecided(ref: str) -> None:
    """Move the classifier of an untrained teacher, which finds one class everywhere, to where it finds several."""
    file = Path(ref.partition("checkpoint=")[2].partition("&")[0])
    generator = np.random.default_rng(0)
    shown = np.stack([picture(number % 3, generator) for number in range(30)])
    images = torch.from_numpy(shown).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        said = load_teacher(ref).collect(xarch.Batch({"images": images}, len(images)), {"logits"})["logits"]
    weights = load_file(file)
    weights["fc.bias"] -= said.mean(0)
    save_file(weights, file)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """A run of the method, watched from inside its objectives."""
    folder = tmp_path_factory.mktemp("deit_lt")
    tiny = tiny_configuration("image", folder)
    undecided(tiny["teacher"])
    settings = {
        **tiny,
        "recipe": "deit-lt",
        "student.target": "timm",
        "student.options": {
            "model": "deit_tiny_distilled_patch16_224",
            "arguments": {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2},
            "size": 32,
        },
        "data.options": {"tail": {"factor": 4, "largest": 12}, "validation": 0.1, "calibration": 0.1, "heldout": 0.1},
        "evaluate": {"samples": 4, "baseline": False, "controls": False},
        "export.profiles": [],
        "stages.distil.epochs": EPOCHS,
        "stages.distil.batch.size": BATCH,
        "stages.distil.log_every": 1,
        "stages.distil.teacher_cache": "off",
        "tiny": False,
    }
    seen: dict[bool, list[Call]] = {True: [], False: []}
    plain = LabelObjective.forward

    def watched(self: Any, student: Any, teacher: Any, batch: Any, **aux: Any) -> Tensor:
        if student.requires_grad and not student.is_meta:
            kept = (student.detach().clone(), teacher.clone(), batch["images"].clone(), self.options.model_dump())
            seen[isinstance(self, HardLabel)].append(Call(*kept))
        return plain(self, student, teacher, batch, **aux)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelObjective, "forward", watched)
        run = xarch.convert(sets=["stages.distil.validation=null"], overrides=settings, out=folder / "run").path
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Steps(settings["teacher"], seen[False], seen[True], [row for row in found if "loss" in row], run)


def test_every_step_is_seen_once(steps: Steps) -> None:
    assert len(steps.cls) == len(steps.dist) == len(steps.rows) == STEPS


def test_pictures_are_mixed_and_labels_soft_up_to_four_fifths(steps: Steps) -> None:
    """Spec B2: mixup or cutmix and smoothing in phase 1, plain labels in phase 2."""
    for number, call in enumerate(steps.cls):
        assert (call.right.ndim == 2) == (number < SWITCH)
        assert call.options["smoothing"] == (0.1 if number < SWITCH else 0)
        assert call.options["balance"] == "none"
    mixed = [bool((call.right.max(-1).values < 1).any()) for call in steps.cls[:SWITCH]]
    assert 0.2 < sum(mixed) / SWITCH < 0.8


def test_the_teacher_judges_the_very_pixels_that_the_student_sees(steps: Steps) -> None:
    teacher = load_teacher(steps.teacher)
    for one, other in zip(steps.cls, steps.dist, strict=True):
        assert torch.equal(one.images, other.images)
        with torch.no_grad():
            said = teacher.collect(xarch.Batch({"images": other.images}, len(other.images)), {"logits"})["logits"]
        torch.testing.assert_close(said, other.right, rtol=1e-3, atol=1e-4)
    assert len({tuple(call.images.flatten(1).sum(0)[:8].tolist()) for call in steps.cls}) == STEPS


def test_losses_are_those_of_the_paper(steps: Steps) -> None:
    """Half a cross-entropy of the labels, and half one of the teacher's classes, weighted from four fifths on."""
    weight_K = class_weights("effective-number", 0.9999, {"class_counts": COUNTS}, "dist")
    labelled = []
    for number, (one, other, row) in enumerate(zip(steps.cls, steps.dist, steps.rows, strict=True)):
        late = number >= SWITCH
        labels = F.cross_entropy(one.student, one.right, label_smoothing=0 if late else 0.1)
        hard_B = other.right.argmax(-1)
        dist = F.cross_entropy(other.student, hard_B, weight_K if late else None)
        assert row["match.labels"] == pytest.approx(float(labels), rel=1e-4)
        assert row["match.dist"] == pytest.approx(float(dist), rel=1e-4)
        assert row["loss"] == pytest.approx(float(labels + dist) / 2, rel=1e-4)
        assert 0 < row["match.tokens"] <= 2
        dominant_B = one.right if one.right.ndim == 1 else one.right.argmax(-1)
        assert row["monitor.label_agreement.dist"] == pytest.approx(float((hard_B == dominant_B).float().mean()))
        labelled.append(len(hard_B.unique()))
    assert max(labelled[SWITCH:]) > 1, "with one class in every batch, weights would not be seen"


def test_both_tokens_are_operating_points_and_their_weight_is_chosen_last(steps: Steps) -> None:
    measured = json.loads((steps.run / "eval.json").read_text())
    assert {"cls", "dist"} <= measured["variants"].keys()
    plan = json.loads((steps.run / "plan.json").read_text())
    assert [stage["name"] for stage in plan["stages"]] == ["distil", "fuse"]


def test_the_plan_says_what_a_teacher_is_good_for(steps: Steps) -> None:
    plan = json.loads((steps.run / "plan.json").read_text())
    (said,) = (check for check in plan["checks"] if check["name"] == "long tail")
    assert said["state"] == "not checked"
    assert "two-token-drw" in said["detail"]
    assert "monitor.label_agreement.dist" in said["detail"]
    assert "monitor.label_agreement.dist" in steps.rows[-1]


@pytest.mark.parametrize(("counts", "said"), [([5, 5], "change nothing"), ([5, 4], "re-weighting alone")])
def test_equal_classes_need_no_weights(counts: list[int], said: str) -> None:
    matches = {
        "labels": {"student": "logits.cls", "objective": "cross-entropy"},
        "dist": {"student": "logits.dist", "objective": "hard-label"},
    }
    phase = {"from": 0.8, "set": {"matches.dist.options.reweight": True}}
    stages = [SimpleNamespace(config=Stage.model_validate({"matches": matches, "phases": [phase]}))]
    (found,) = checks(SimpleNamespace(stages=stages, data={"facts": {"class_counts": counts}}))
    assert said in found.detail


def test_weights_are_those_of_the_paper() -> None:
    """Spec B2: CIFAR-10-LT, imbalance 100, β = 0.9999."""
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    found = class_weights("effective-number", 0.9999, {"class_counts": counts}, "dist")
    assert found is not None
    want = [0.051, 0.077, 0.121, 0.195, 0.319, 0.525, 0.868, 1.443, 2.409, 3.993]
    torch.testing.assert_close(found, torch.tensor(want), atol=1e-3, rtol=0)
    assert float(found.sum()) == pytest.approx(10)
