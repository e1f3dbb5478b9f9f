"""``xarch pvd save`` and ``render``: a user's files, read again and rendered (acceptance A13)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import xarch
from tests.plugins.pvd.tiny_field import OPTIONS_OF, SIZE, trained, write_teacher
from xarch import UsageError
from xarch.api import convert
from xarch.cli.app import run
from xarch_field import render
from xarch_field.facts import ViewFacts
from xarch_field.turntable import orbit
from xarch_pvd.evaluate.metric import psnr
from xarch_pvd.export.saving import SavingOptions, compared, format_of, save
from xarch_pvd.source.reference import field_of, open_field
from xarch_pvd.targets.baking import baked


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A vm and a voxel field."""
    folder = tmp_path_factory.mktemp("fields")
    for arch in ("vm", "tensors"):
        write_teacher(folder / f"{arch}.safetensors", arch)
    return {arch: folder / f"{arch}.safetensors" for arch in ("vm", "tensors")}


def command(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The document of a command that succeeds."""
    assert run([*map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("arch", "name", "more", "limit"),
    [
        ("tensors", "a.npz", [], 45),
        ("tensors", "b.npz", ["--full", "--linear"], 60),
        ("tensors", "c.pth", [], 60),
        ("vm", "d.pth", [], 60),
        ("vm", "e.safetensors", [], 99),
        ("vm", "f.npz", ["--resolution", "32"], 45),
    ],
)
def test_a_file_read_again_renders_alike(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arch: str,
    name: str,
    more: list[str],
    limit: float,
) -> None:
    found = command(capsys, "pvd", "save", files[arch], "--out", tmp_path / name, *more)
    assert found["psnr_read_again"] > limit
    assert found["bytes"] == (tmp_path / name).stat().st_size
    assert ("psnr_baked" in found) == (name == "f.npz")
    # What the command says is what a reader of its own finds.
    again, source = field_of(open_field(str(tmp_path / name), allow_pickle=True).record), trained(arch)
    origins, dirs = orbit(ViewFacts(width=SIZE, height=SIZE), 30, 25)[0].rays()
    with torch.no_grad():
        pair = [render(f, origins, dirs, torch.ones(3), samples=192)["rgb"] for f in (again, source)]
    assert psnr(*pair) > (22 if name == "f.npz" else limit - 3)


@pytest.mark.slow
def test_svox2_is_exact_once_it_is_svox2(files: dict[str, Path], tmp_path: Path) -> None:
    options = SavingOptions()
    found = save(open_field(str(files["tensors"])), tmp_path / "a.npz", "svox2", options)
    assert found["psnr_read_again"] > 20
    assert found["density"] in ("exact at samples", "opacity of voxels")
    again = save(open_field(str(tmp_path / "a.npz")), tmp_path / "b.npz", "svox2", options)
    assert again["psnr_read_again"] == 100
    assert "psnr_baked" not in again


def test_baking_follows_the_shape_of_the_box(files: dict[str, Path]) -> None:
    record = open_field(str(files["tensors"])).record
    flat = replace(record, aabb=(-1.0, -1.0, -1.0, 1.0, 1.0, 0.0))
    voxels = baked(field_of(flat), resolution=33)
    assert list(voxels.volume.shape[:3]) == [33, 33, 17]
    with pytest.raises(UsageError, match="crop it to a box"):
        baked(field_of(replace(record, warp="contract_inf")), resolution=8)


def test_a_finer_bake_is_closer(files: dict[str, Path]) -> None:
    opened = open_field(str(files["vm"]))
    field = field_of(opened.record)
    values = [compared(baked(field, resolution=r), field, opened.views) for r in (16, 48)]
    assert values[1] > values[0] + 3
    assert values[1] > 25


def test_a_mesh(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = command(
        capsys, "pvd", "save", files["tensors"], "--out", tmp_path / "a.ply", "--resolution", "48", "--level", "1"
    )
    assert found["vertices"] > 500
    assert (tmp_path / "a.ply").read_bytes().startswith(b"ply\n")


def test_pictures(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    found = command(capsys, "pvd", "render", files["vm"], "--out", tmp_path / "p.png", "--size", "20")
    assert (found["width"], found["height"], found["frames"]) == (20, 20, 1)
    with Image.open(tmp_path / "p.png") as picture:
        assert len(picture.getcolors(400) or [0] * 401) > 40
    command(capsys, "pvd", "render", files["vm"], "--out", tmp_path / "t.gif", "--size", "12", "--frames", "3")
    with Image.open(tmp_path / "t.gif") as turn:
        assert (turn.n_frames, turn.info["loop"]) == (3, 0)


def test_a_run_is_a_field_and_the_teacher_of_the_next(files: dict[str, Path], tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "recipe": "pvd",
        "teacher": f"field:{files['vm']}",
        "student.target": "tensors",
        "student.options": OPTIONS_OF["tensors"],
        "budget": 1,
        "evaluate.samples": 1,
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "export.profiles": [],
    }
    first = convert(overrides=given, out=tmp_path / "first")
    opened = open_field(str(first.path))
    assert opened.record.arch == "tensors"
    assert opened.views.width == SIZE
    for ref in (f"run:{first.path}", f"field:{first.path}"):
        # A student knows its own kind: the second conversion copies voxels, the first one baked them.
        second = xarch.plan(overrides={**given, "teacher": ref})
        assert (second.teacher.facts["arch"], second.teacher.facts["feature"]) == ("tensors", ref.startswith("field:"))
        assert second.student.copied == ["volume"]
    done = convert(overrides={**given, "teacher": f"run:{first.path}"}, out=tmp_path / "second")
    assert torch.equal(xarch.load(done.path).aabb, xarch.load(first.path).aabb)
    assert json.loads((done.path / "eval.json").read_text())["student"]["psnr_teacher"] > 40


def test_endings_name_formats() -> None:
    assert format_of(Path("a.npz"), None) == "voxels"
    assert format_of(Path("a.npz"), "svox2") == "svox2"
    for name, named, message in (
        ("a.obj", None, r"\.obj, which is not a known format"),
        ("a.npz", "torch-ngp", r"end in \.pth"),
        ("a.npz", "vdb", "unknown format 'vdb'"),
    ):
        with pytest.raises(UsageError, match=message):
            format_of(Path(name), named)


def test_mistakes_end_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for words, message in (
        (["save", tmp_path / "no.pth", "--out", tmp_path / "a.npz"], "no such file"),
        (["save", tmp_path / "pictures", "--out", tmp_path / "a.npz"], "xarch pvd train"),
        (["render", tmp_path / "pictures", "--out", tmp_path / "a.jpg"], "neither .png nor .gif"),
    ):
        assert run(["pvd", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
