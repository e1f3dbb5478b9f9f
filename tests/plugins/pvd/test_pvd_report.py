"""What fields add to a report: renders with error maps, figures of every view, sizes, times."""

from __future__ import annotations

import base64
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.plugins.pvd.tiny_field import OPTIONS_OF, SIZE, write_teacher
from xarch.api import convert
from xarch.files.run_dir import RunDir
from xarch.numbers import count, size
from xarch.report.files import read_run
from xarch_pvd.evaluate.renders import renders_svg
from xarch_pvd.evaluate.report import sections
from xarch_pvd.evaluate.view_samples import ShownViews
from xarch_pvd.train import scene

VIEWS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short conversion judged by pictures, with a curve."""
    folder = tmp_path_factory.mktemp("report")
    scene.write_scene(folder / "scene", views=4, size=SIZE, val=1, test=VIEWS)
    overrides = {
        "recipe": "pvd",
        "teacher": write_teacher(folder / "teacher.safetensors"),
        "student.target": "cp",
        "student.options": OPTIONS_OF["cp"],
        "data.ref": f"views:{folder / 'scene'}",
        "teacher_options": {"samples": 48},
        "budget": 120_000,
        "evaluate.samples": VIEWS,
        "evaluate.curve": {"samples": 2, "every": 6},
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "export.profiles": [],
    }
    return convert(overrides=overrides, out=folder / "run").path


def found(run: Path) -> dict[str, Any]:
    """Title -> first block."""
    return {s.title: s.blocks[0] for s in sections(read_run(RunDir(run)))}


@pytest.mark.slow
def test_every_view_has_figures_to_the_teacher_and_to_its_picture(run: Path) -> None:
    evaluation = json.loads((run / "eval.json").read_text())
    samples = evaluation["samples"]
    assert [s["view"] for s in samples] == list(range(VIEWS))
    for name in ("psnr_teacher", "ssim_teacher", "psnr", "ssim"):
        mean = sum(s["figures"]["student"][name] for s in samples) / VIEWS
        assert mean == pytest.approx(evaluation["student"][name])
    rows = found(run)["Views"].rows
    assert len(rows) == VIEWS
    worst = min(samples, key=lambda s: s["figures"]["student"]["psnr_teacher"])
    row = rows[worst["view"]]
    assert row[:2] == [f"{worst['view']} (worst)", f"{worst['figures']['student']['psnr_teacher']:.2f}"]
    assert f"{worst['figures']['teacher']['psnr']:.2f}" in row


@pytest.mark.slow
def test_renders_stand_side_by_side_with_three_error_maps(run: Path) -> None:
    svg = ET.fromstring(found(run)["Renders"].images[0].data)
    space = "{http://www.w3.org/2000/svg}"
    shown = [s for s in json.loads((run / "eval.json").read_text())["samples"] if "png" in s]
    assert len(svg.findall(f"{space}image")) == 6 * len(shown)
    words = [t.text for t in svg.findall(f"{space}text")]
    for title in ("image", "teacher", "student", "student − teacher", "teacher − image", "student − image"):
        assert title in words
    figures = shown[0]["figures"]["student"]
    assert f"{figures['psnr']:.2f} dB · SSIM {figures['ssim']:.3f}" in words
    assert "Renders" in (run / "report.html").read_text(encoding="utf-8")
    assert "iVBOR" not in (run / "report.md").read_text(encoding="utf-8")


def test_sizes_are_those_of_the_files(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    rows = found(run)["Size"].rows
    teacher = Path(plan["teacher"]["ref"].removeprefix("field:")).stat().st_size
    student = (run / "student" / "model.safetensors").stat().st_size
    assert rows[0][1:] == [count(plan["teacher"]["parameters"]), size(teacher), "100 %"]
    parameters = json.loads((run / "student" / "config.json").read_text())["parameters"]
    assert rows[1][1:] == [count(parameters), size(student), f"{100 * student / teacher:.3g} %"]


def test_times_come_from_the_curve_and_rise(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    lines = found(run)["Time to PSNR"].rows
    times = [float(line[1]) for line in lines]
    assert times == sorted(times)
    best = max(r["student"]["psnr_teacher"] for r in rows)
    assert lines[-1][0] == f"{best:.2f} (best)"
    (run / "curve.jsonl").rename(run / "kept.jsonl")
    assert "Time to PSNR" not in found(run)
    (run / "kept.jsonl").rename(run / "curve.jsonl")


def flat(value: float, height: int = 6, width: int = 8) -> torch.Tensor:
    return torch.full((height, width, 3), value)


def shown(errors: list[float], *, truth: bool = False) -> list[dict[str, Any]]:
    """Views of a grey teacher and a student that is off by an error."""
    views = ShownViews()
    for error in errors:
        pictures = {"teacher": flat(0.5), "student": flat(0.5 + error)} | ({"truth": flat(0.4)} if truth else {})
        figures = {"psnr_teacher": 40 - 100 * error, "ssim_teacher": 0.9, "psnr": 20.0, "ssim": 0.8}
        views.add(pictures, {"teacher": figures, "student": figures})
    return views.samples()


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))


def test_pictures_of_the_first_views_and_of_the_worst_are_kept() -> None:
    samples = shown([0.01, 0.02, 0.03, 0.09, 0.05])
    assert [s["view"] for s in samples if "png" in s] == [0, 1, 3]
    assert [s["view"] for s in samples if s["worst"]] == [3]


def test_all_maps_have_one_scale() -> None:
    samples = shown([0.01, 0.09])
    assert samples[0]["limits"]["teacher"] == pytest.approx(0.1)
    small, large = (pixels(s["png"]["error"]).astype(int).sum() for s in samples)
    assert small < large
    assert set(samples[0]["png"]) == {"teacher", "student", "error"}
    both = shown([0.01, 0.09], truth=True)[0]
    assert both["limits"]["truth"] == pytest.approx(0.2)
    assert {"teacher_error", "student_error"} < set(both["png"])


def test_equal_pictures_have_a_dark_map_and_large_ones_are_made_small() -> None:
    views = ShownViews()
    figures = {"psnr_teacher": 100.0, "ssim_teacher": 1.0}
    views.add({"teacher": flat(0.3, 700, 900), "student": flat(0.3, 700, 900)}, {"teacher": {}, "student": figures})
    sample = views.samples()[0]
    assert pixels(sample["png"]["error"]).max() < 8
    assert pixels(sample["png"]["teacher"]).shape[:2] == (249, 320)
    image = ET.fromstring(renders_svg([sample])).find("{http://www.w3.org/2000/svg}image")
    assert image is not None
    assert float(image.get("width", 0)) / float(image.get("height", 0)) == pytest.approx(900 / 700, rel=0.01)
