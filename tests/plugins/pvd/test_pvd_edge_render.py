"""examples/edge/render.py on an exported field: the picture that torch renders, with nothing of xarch or torch."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_fields import SAMPLES, export, student_of
from PIL import Image

from xarch.export.profiles import cpu, npu_int8
from xarch.families.field import Camera, render, sphere_pose

EXAMPLE = Path(__file__).parents[3] / "examples" / "edge" / "render.py"


def run(*arguments: object) -> None:
    script = (
        "import runpy, sys; path = sys.argv.pop(1); runpy.run_path(path, run_name='__main__'); "
        "assert not {'torch', 'xarch', 'onnx'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(EXAMPLE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def by_torch(arch: str, azimuth: float, elevation: float, size: int) -> np.ndarray:
    views = student_of(arch).facts.views
    pose = sphere_pose(math.radians(azimuth), math.radians(elevation), views.radius[1], torch.tensor(views.target))
    focal = views.focal * size
    camera = Camera(size, size, focal, focal, size / 2, size / 2, pose)
    rgb = render(student_of(arch).field, *camera.rays(), torch.ones(3), samples=SAMPLES)["rgb"]
    return rgb.view(size, size, 3).clamp(0, 1).numpy()


def difference(file: Path, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(Image.open(file).convert("RGB")) / 255 - wanted).max())


@pytest.mark.parametrize(
    ("profile", "limit"), [(cpu, 0.003), pytest.param(npu_int8, 0.1, marks=pytest.mark.slow)], ids=["cpu", "npu-int8"]
)
def test_picture_and_turntable(profile: object, limit: float, tmp_path: Path) -> None:
    export(student_of("vm"), profile, tmp_path / "out")  # type: ignore[arg-type]
    png, gif = tmp_path / "view.png", tmp_path / "turn.gif"
    run(tmp_path / "out", png, "--size", 31, "--azimuth", 100, "--elevation", 40, "--turntable", gif, "--frames", 4)
    assert difference(png, by_torch("vm", 100, 40, 31)) < limit
    turn = Image.open(gif)
    assert (turn.size, turn.n_frames, turn.info["loop"]) == ((31, 31), 4, 0)  # type: ignore[attr-defined]
    turn.seek(2)
    turn.convert("RGB").save(tmp_path / "half.png")
    right, wrong = (difference(tmp_path / "half.png", by_torch("vm", angle, 40, 31)) for angle in (280, 100))
    assert right < 0.15 < 0.3 < wrong


def test_it_is_short_and_imports_what_the_readme_says() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    modules = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert modules == {"argparse", "json", "pathlib", "numpy", "onnxruntime", "PIL"}
