"""Posed images: every format gives the rays of the cameras it was written from, and opens no picture for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.plugins.pvd.posed_folders import (
    FOCAL,
    HEIGHT,
    WIDTH,
    cameras,
    expected_rays,
    write_blender,
    write_colmap,
    write_llff,
    write_nsvf,
)
from xarch import UsageError
from xarch_pvd.data.datasets.distortion import distort, undistort
from xarch_pvd.data.datasets.llff import average_pose, read_llff
from xarch_pvd.data.datasets.open import open_posed, recognise
from xarch_pvd.data.datasets.posed import PosedImages
from xarch_pvd.data.datasets.splits import held_out


def assert_rays(posed: PosedImages, poses: Tensor) -> None:
    assert len(posed) == len(poses)
    for view, pose in enumerate(poses):
        origins, dirs = expected_rays(pose)
        seen = posed.rays(view)
        assert torch.allclose(seen[0].double(), origins, atol=1e-5)
        assert torch.allclose(seen[1].double(), dirs, atol=1e-5)
        if not posed.distortion[view].any():
            pinhole = posed.camera(view).rays()
            assert torch.allclose(pinhole[1], seen[1], atol=1e-5)


def colmap_text(folder: Path, poses: Tensor) -> None:
    write_colmap(folder, poses, binary=False)


@pytest.mark.parametrize(
    ("kind", "write", "train", "test"),
    [
        ("blender", write_blender, list(range(10)), None),
        ("colmap", write_colmap, held_out(10, "train"), [0, 8]),
        ("colmap", colmap_text, held_out(10, "train"), [0, 8]),
        ("nsvf", write_nsvf, [0, 1, 2, 4, 5, 6, 8, 9], [3, 7]),
    ],
)
def test_rays_agree(
    tmp_path: Path, kind: str, write: Callable[[Path, Tensor], None], train: list[int], test: list[int] | None
) -> None:
    poses = cameras(10)
    write(tmp_path, poses)
    assert recognise(tmp_path) == kind
    posed = open_posed(tmp_path)
    assert_rays(posed, poses[train])
    if test is not None:
        assert_rays(open_posed(tmp_path, "test"), poses[test])


def test_llff_rays_agree_before_and_after_recentring(tmp_path: Path) -> None:
    poses = cameras(10, forward=True)
    write_llff(tmp_path, poses)
    assert recognise(tmp_path) == "llff"
    assert_rays(read_llff(tmp_path, recentre=False), poses[held_out(10, "train")])
    posed = open_posed(tmp_path, "test")
    moved = torch.linalg.inv(average_pose(poses)) @ poses
    moved[:, :3, 3] /= 0.75 * 2.0
    assert_rays(posed, moved[held_out(10, "test")])
    assert posed.near_far is not None
    assert torch.allclose(posed.near_far[0], torch.tensor([4 / 3, 4.0], dtype=torch.float64))


def test_pictures_stay_closed(tmp_path: Path) -> None:
    poses = cameras(4)
    write_blender(tmp_path, poses, w=WIDTH, h=HEIGHT)
    shutil.rmtree(tmp_path / "train")
    posed = open_posed(tmp_path)
    assert_rays(posed, poses)
    with pytest.raises(UsageError, match=r"r_0\.png does not exist"):
        _ = posed.images


def test_pictures_are_laid_over_the_background(tmp_path: Path) -> None:
    write_blender(tmp_path, cameras(2))
    posed = open_posed(tmp_path)
    stored = torch.from_numpy(np.asarray(Image.open(posed.files[1]), dtype=np.float32)) / 255
    white = stored[..., :3] * stored[..., 3:] + 1 - stored[..., 3:]
    assert torch.allclose(posed.images[1], white)
    assert torch.allclose(posed.rgba(1), stored)
    assert torch.allclose(posed.picture(1, (0.0, 0.0, 0.0)), stored[..., :3] * stored[..., 3:])


def test_downscale_averages_and_keeps_the_view(tmp_path: Path) -> None:
    write_blender(tmp_path, cameras(2))
    full, half = open_posed(tmp_path), open_posed(tmp_path, downscale=2)
    assert (half.widths[0], half.heights[0], float(half.fx[0])) == (WIDTH // 2, HEIGHT // 2, pytest.approx(FOCAL / 2))
    # Laid over black, the mean of four pixels is the pixel of the smaller picture.
    black = full.picture(0, (0.0, 0.0, 0.0)).view(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(dim=(1, 3))
    assert torch.allclose(half.picture(0, (0.0, 0.0, 0.0)), black, atol=1e-6)


def test_a_frame_overrides_the_lens(tmp_path: Path) -> None:
    write_blender(tmp_path, cameras(3), fl_x=40.0, cx=11.0)
    file = tmp_path / "transforms_train.json"
    document = json.loads(file.read_text())
    document["frames"][1] |= {"fl_x": 50.0, "fl_y": 55.0, "k1": 0.1}
    file.write_text(json.dumps(document))
    posed = open_posed(tmp_path)
    assert posed.fx.tolist() == [40, 50, 40]
    assert posed.fy.tolist() == [40, 55, 40]
    assert posed.cx.tolist() == [11, 11, 11]
    assert posed.cy.tolist() == [HEIGHT / 2] * 3
    assert posed.distortion[1].tolist() == [0.1, 0, 0, 0]
    for seen, wanted in zip(posed.camera(1).rays(), posed.rays(1), strict=True):
        assert torch.allclose(seen, wanted, atol=1e-6)


def test_one_file_holds_out_every_eighth_view(tmp_path: Path) -> None:
    write_blender(tmp_path, cameras(10))
    (tmp_path / "transforms_train.json").rename(tmp_path / "transforms.json")
    assert open_posed(tmp_path, "test").names == ("r_0", "r_8")
    assert len(open_posed(tmp_path, "train")) == 8
    document = json.loads((tmp_path / "transforms.json").read_text())
    document["test_filenames"] = ["./train/r_3"]
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    assert open_posed(tmp_path, "test").names == ("r_3",)


@pytest.mark.parametrize("model", [2, 3, 4])
def test_a_distorting_lens_is_undone(tmp_path: Path, model: int) -> None:
    terms = {2: (-0.1,), 3: (-0.1, 0.02), 4: (-0.1, 0.02, 0.003, -0.002)}[model]
    write_colmap(tmp_path, cameras(3), model=model, lens=terms)
    posed = open_posed(tmp_path, "train")
    _, dirs = posed.rays(0)
    local = dirs.double() @ posed.c2w[0, :3, :3].double()
    x, y = distort(local[:, 0] / -local[:, 2], -local[:, 1] / -local[:, 2], posed.distortion[0])
    pixels = torch.arange(WIDTH * HEIGHT).double()
    assert torch.allclose(x * FOCAL + WIDTH / 2, pixels % WIDTH + 0.5, atol=1e-4)
    assert torch.allclose(y * FOCAL + HEIGHT / 2, (pixels / WIDTH).floor() + 0.5, atol=1e-4)


def test_undistort_by_hand() -> None:
    lens = torch.tensor([0.2, 0.0, 0.0, 0.0], dtype=torch.float64)
    x, y = undistort(torch.tensor([0.5 * (1 + 0.2 * 0.25)]), torch.tensor([0.0]), lens)
    assert float(x) == pytest.approx(0.5, abs=1e-7)
    assert float(y) == 0
    with pytest.raises(UsageError, match="cannot be inverted"):
        undistort(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([-0.5, 0.0, 0.0, 0.0]))


def test_the_world_of_torch_ngp(tmp_path: Path) -> None:
    poses = cameras(3)
    write_blender(tmp_path, poses)
    posed = open_posed(tmp_path).to_torch_ngp(0.8)
    for view, pose in enumerate(poses):
        # nerf_matrix_to_ngp gives an OpenCV camera: its second and third column are minus ours.
        theirs = pose[[1, 2, 0]] * torch.tensor([1.0, -1.0, -1.0, 0.8], dtype=torch.float64)
        ours = posed.c2w[view, :3].double() * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_digest_follows_the_cameras(tmp_path: Path) -> None:
    write_blender(tmp_path, cameras(3))
    posed = open_posed(tmp_path)
    assert posed.digest == open_posed(tmp_path).digest
    assert posed.digest != replace(posed, fx=posed.fx + 1).digest


BROKEN = {
    "no frames": {"frames": []},
    "no focal length": {"camera_angle_x": None},
    "no matrix": {"frames": [{"file_path": "a", "transform_matrix": [[1, 2], [3, 4]]}]},
    "no rotation": {"frames": [{"file_path": "a", "transform_matrix": (np.eye(4) * 3).tolist()}]},
    "not finite": {"frames": [{"file_path": "a", "transform_matrix": [[float("nan")] * 4] * 4}]},
    "fisheye": {"camera_model": "OPENCV_FISHEYE"},
    "richer lens": {"k3": 0.1},
    "angle": {"camera_angle_x": 4.0},
    "text for a number": {"cx": "12"},
}


@pytest.mark.parametrize("change", BROKEN)
def test_broken_transforms_are_refused(tmp_path: Path, change: str) -> None:
    write_blender(tmp_path, cameras(2), w=WIDTH, h=HEIGHT)
    file = tmp_path / "transforms_train.json"
    document = json.loads(file.read_text()) | BROKEN[change]
    file.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    with pytest.raises(UsageError):
        open_posed(tmp_path)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("cut", [4, 20, 61])
def test_cut_colmap_files_are_refused(tmp_path: Path, name: str, cut: int) -> None:
    write_colmap(tmp_path, cameras(3))
    file = tmp_path / "sparse" / "0" / name
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UsageError, match=name):
        open_posed(tmp_path)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"looked for transforms_train\.json"):
        open_posed(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        open_posed(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="split"):
        open_posed(tmp_path, "training")
    write_colmap(tmp_path / "fisheye", cameras(3), binary=False, model=5, lens=(0.1, 0.0, 0.0, 0.0))
    with pytest.raises(UsageError, match="OPENCV_FISHEYE"):
        open_posed(tmp_path / "fisheye")
    write_llff(tmp_path / "llff", cameras(9, forward=True))
    (tmp_path / "llff" / "images" / "000.png").unlink()
    with pytest.raises(UsageError, match="8 images"):
        open_posed(tmp_path / "llff")
    np.save(tmp_path / "llff" / "poses_bounds.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read"):
        open_posed(tmp_path / "llff")
    write_blender(tmp_path / "size", cameras(1), w=WIDTH + 1, h=HEIGHT)
    with pytest.raises(UsageError, match="its camera"):
        open_posed(tmp_path / "size")
