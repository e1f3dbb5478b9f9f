"""A long tail end to end, by the commands of a user: teacher, student with two tokens, 8-bit file, report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xarch_image.testing import CLASSES, picture

COUNTS = {"train": (40, 16, 6), "test": (10, 10, 10)}
DEIT = "timm:deit_tiny_distilled_patch16_224?size=32&patch_size=8&embed_dim=64&depth=2&num_heads=2"


def write_pictures(folder: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for part, counts in COUNTS.items():
        for kind, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(kind, generator)).save(folder / part / name / f"{number:03d}.png")


def xarch(*arguments: str, folder: Path) -> str:
    settings = ("runtime.device=cpu", "runtime.threads=1", "runtime.tensorboard=false", "export.bench=false")
    given = [word for value in settings for word in ("--set", value)] if arguments[0] == "convert" else []
    done = subprocess.run(
        [sys.executable, "-m", "xarch", *arguments, *given], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_transformer_learns_the_tail_from_a_network_made_on_the_spot(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    data = ("--data", "images:pictures", "--set", "data.options.validation=0.2", "--set", "stages.distil.batch.size=16")
    made = ("--method", "ldam-drw-sam", "--teacher", "none", "--to", "timm:test_resnet?cosine=30&size=32")
    xarch("convert", *made, *data, "--set", "stages.distil.epochs=40", "--out", "teacher", folder=tmp_path)
    command = ("--method", "deit-lt", "--teacher", "run:teacher", "--to", DEIT, *data)
    plan = xarch("plan", *command, folder=tmp_path)
    assert "from 80%: batch.steps.cutmix = null" in plan
    assert "hard-label" in plan
    short = ("--set", "stages.distil.epochs=40", "--set", "evaluate.exports=true")
    profiles = ("--set", "export.profiles=[cpu, cpu-int8]", "--out", "student")
    xarch("convert", *command, *short, *profiles, folder=tmp_path)
    found = json.loads((tmp_path / "student" / "eval.json").read_text())
    assert found["teacher"]["top1"] > 0.9
    tail = {name: found["exports"][name]["recall.tail"] for name in ("cpu", "cpu-int8")}
    assert tail["cpu"] == pytest.approx(found["student"]["recall.tail"], abs=1e-6)
    assert abs(tail["cpu-int8"] - tail["cpu"]) <= 0.3
    assert {"cls", "dist"} <= found["variants"].keys()
    report = (tmp_path / "student" / "report.html").read_text()
    assert all(words in report for words in ("Classes by frequency", "exported, cpu-int8", "student, dist"))
    assert json.loads((tmp_path / "student" / "export" / "cpu-int8" / "parity.json").read_text())["passed"]
