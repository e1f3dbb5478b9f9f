"""Exported students: profiles, normalisation, static shapes, 8-bit forms, and the example that needs no xarch."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from xarch import Batch
from xarch.export.run import export_profile
from xarch.registry.loader import get_registry
from xarch_image.family import PROGRAM
from xarch_image.testing import picture
from xarch_timm.build import create, describe
from xarch_timm.export import ImageExport
from xarch_timm.model import TimmStudent
from xarch_timm.target import TimmTarget

ROOT = Path(__file__).parents[3]
VIT, CNN = "test_vit", "test_resnet"
SMALL: dict[str, dict[str, Any]] = {VIT: {"patch_size": 8, "depth": 2}, CNN: {}}
STEPS = 25
PROFILES = ("cpu", "cpu-int8", "openvino", "web", "npu", "npu-fp16", "npu-int8")


@cache
def shown(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [count, 3, 32, 32] in 0 to 1 and their classes."""
    generator = np.random.default_rng(seed)
    classes = torch.arange(count) % 3
    pixels = np.stack([picture(int(kind), generator) for kind in classes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, classes


@cache
def student_of(name: str) -> TimmStudent:
    """A student trained for some steps: logits of an untrained one are mostly rounding errors in 8 bits."""
    torch.manual_seed(0)
    facts = describe(name, classes=3, size=(32, 32), arguments=SMALL[name])
    made = TimmStudent(create(facts), facts)
    made.module.train()
    optimiser = torch.optim.AdamW(made.module.parameters(), lr=2e-3)
    images, classes = shown(0, 48)
    for _ in range(STEPS):
        logits = made.collect(Batch({"images": images}, 48), {"logits"})["logits"]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits, classes).backward()
        optimiser.step()
    made.module.eval().requires_grad_(False)
    return made


def pictures() -> list[Batch]:
    """Held-out pictures of another size than the student reads."""
    images = torch.nn.functional.interpolate(shown(1, 12)[0], size=(40, 40), mode="bilinear")
    return [Batch({"images": images}, 12)]


def exported(student: TimmStudent, profile: str, out: Path, **options: Any) -> dict[str, Any]:
    result = export_profile(
        student,
        TimmTarget(),
        get_registry().create("export", profile),
        options=ImageExport(**options),
        batches=pictures(),
        out=out,
        metadata={},
        say=lambda line: None,
    )
    return result.profile


def run(file: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images})
    return np.asarray(logits)


@pytest.mark.slow
def test_a_graph_for_any_number_of_pictures_and_one_for_one(tmp_path: Path) -> None:
    student = student_of(VIT)
    exported(student, "cpu", tmp_path / "cpu")
    exported(student, "npu", tmp_path / "npu")
    images = np.random.default_rng(0).random((5, 3, 32, 32), np.float32)
    with torch.no_grad():
        wanted = student.collect(Batch({"images": torch.from_numpy(images)}, 5), {"logits"})["logits"].numpy()
    for count in (1, 2, 5):
        assert np.allclose(run(tmp_path / "cpu" / "model.onnx", images[:count]), wanted[:count], atol=1e-4)
    assert np.allclose(run(tmp_path / "npu" / "model.onnx", images[:1]), wanted[:1], atol=1e-4)
    with pytest.raises(Exception, match="index: 0 Got: 2 Expected: 1"):
        run(tmp_path / "npu" / "model.onnx", images[:2])
    names = {node.op_type for node in onnx.load(tmp_path / "npu" / "model.onnx").graph.node}
    assert not names & {"Erf", "IsNaN", "Loop", "If"}


@pytest.mark.slow
def test_normalisation_inside_or_in_the_metadata(tmp_path: Path) -> None:
    student = student_of(CNN)
    exported(student, "cpu", tmp_path / "outside", normalisation="metadata")
    model = onnx.load(tmp_path / "outside" / "model.onnx", load_external_data=False)
    told = json.loads({p.key: p.value for p in model.metadata_props}["xarch.image"])
    assert (told["mean"], told["std"]) == ([0.5] * 3, [0.5] * 3)
    images = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    with torch.no_grad():
        wanted = student.collect(Batch({"images": torch.from_numpy(images)}, 2), {"logits"})["logits"].numpy()
    assert np.allclose(run(tmp_path / "outside" / "model.onnx", (images - 0.5) / 0.5), wanted, atol=1e-4)


@pytest.mark.slow
def test_the_faster_of_two_8_bit_forms_is_kept(tmp_path: Path) -> None:
    described = exported(student_of(VIT), "cpu-int8", tmp_path / "out")
    graph = described["graphs"]["model"]
    assert graph["int8_tried"].keys() == {"activations", "dynamic"}
    fit = {form: m for form, m in graph["int8_tried"].items() if m["rel_l2"] <= 0.05}
    assert graph["int8_form"] in fit
    assert fit[graph["int8_form"]]["cpu_ms"] <= 1.05 * min(m["cpu_ms"] for m in fit.values())
    assert graph["int8_products"] > 8


@pytest.mark.slow
def test_the_program_classifies_without_xarch(tmp_path: Path) -> None:
    from PIL import Image

    student = student_of(CNN)
    exported(student, "cpu", tmp_path / "out")
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    block = "import sys; sys.modules['torch'] = sys.modules['xarch'] = None; "
    (tmp_path / "out" / PROGRAM.name).write_text(PROGRAM.read_text())
    code = block + f"sys.argv = ['classify.py', {str(tmp_path / 'picture.png')!r}]; "
    code += f"import runpy; runpy.run_path({str(tmp_path / 'out' / PROGRAM.name)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        shares = student.collect(Batch({"images": images}, 1), {"logits"})["logits"].softmax(-1)[0]
    assert done.stdout.split(": ")[1].startswith(f"{int(shares.argmax())} {float(shares.max()):.2f}")


@pytest.mark.slow
def test_openvino_agrees(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    student = student_of(VIT)
    exported(student, "openvino", tmp_path / "out")
    images = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    core = openvino.Core()
    compiled = core.compile_model(str(tmp_path / "out" / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.allclose(compiled(images)[0], run(tmp_path / "out" / "model.onnx", images), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("model", [VIT, CNN])
def test_every_profile(model: str, profile: str, tmp_path: Path) -> None:
    assert exported(student_of(model), profile, tmp_path / "out")["graphs"]["model"]["ops"]
