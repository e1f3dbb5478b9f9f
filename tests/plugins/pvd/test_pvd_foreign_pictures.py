"""Folders of posed pictures as other programs leave them: depths, masks, lenses, lists, sizes, worlds."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.plugins.pvd.posed_folders import FOCAL, HEIGHT, WIDTH, cameras, write_colmap, write_llff
from xarch import DataRequest, UsageError
from xarch_field.facts import ViewFacts
from xarch_pvd.data.datasets.open import open_posed, recognise
from xarch_pvd.data.datasets.pictures import read_picture
from xarch_pvd.data.datasets.posed import inverse_world
from xarch_pvd.data.posed_views import near_world, posed_views
from xarch_pvd.data.provider import Views
from xarch_pvd.data.sampling import ViewOptions
from xarch_pvd.evaluate.metric import _compare
from xarch_pvd.train.pixels import Pixels


def write(
    folder: Path,
    count: int = 8,
    *,
    frame: Callable[[int], dict[str, Any]] = lambda i: {},
    name: Callable[[int], str] = lambda i: f"images/{i:03d}.png",
    poses: Any = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    **document: Any,
) -> Path:
    """``transforms.json`` of nerfstudio with pictures."""
    poses = cameras(count) if poses is None else poses
    frames = []
    for i in range(count):
        path = folder / name(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * i, 200, 9)).save(path)
        frames.append({"file_path": name(i), "transform_matrix": poses[i].tolist(), **frame(i)})
    said = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT, **document}
    (folder / "transforms.json").write_text(json.dumps({**said, "frames": frames}))
    return folder


def described(folder: Path, **options: Any) -> Any:
    posed_views.cache_clear()
    return Views().describe(DataRequest(str(folder), ViewOptions(**options), sample={"kind": "rays"}))


# ---- pictures -----------------------------------------------------------------------------------------------------


def png16(path: Path, values: np.ndarray, extra: bytes = b"") -> None:
    """A 16-bit PNG of uint16 [h, w, c]; c is 1 (grey), 2 (grey, alpha), 3 or 4."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    h, w, c = values.shape
    head = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_keep_their_values(tmp_path: Path, channels: int) -> None:
    """h07: grey of 16 bits is not white."""
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    png16(tmp_path / "a.png", values)
    seen = read_picture(tmp_path / "a.png", WIDTH, HEIGHT).numpy()
    wanted = values / 65535
    colours = wanted[..., :1].repeat(3, -1) if channels < 3 else wanted[..., :3]
    assert np.abs(seen[..., :3] - colours).max() < 0.01
    if channels in (2, 4):
        assert np.abs(seen[..., 3] - wanted[..., -1]).max() < 0.01


MODES: dict[str, tuple[Any, tuple[float, ...]]] = {
    "1": (1, (1, 1, 1)),
    "L": (51, (0.2, 0.2, 0.2)),
    "LA": ((51, 102), (0.2, 0.2, 0.2, 0.4)),
    "RGBA": ((255, 0, 51, 102), (1, 0, 0.2, 0.4)),
    "CMYK": ((0, 255, 255, 0), (1, 0, 0)),
    "I;16": (13107, (0.2, 0.2, 0.2)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_scaled_by_its_depth(tmp_path: Path, mode: str) -> None:
    value, wanted = MODES[mode]
    Image.new(mode, (WIDTH, HEIGHT), value).save(tmp_path / "a.tiff")
    seen = read_picture(tmp_path / "a.tiff", WIDTH, HEIGHT)
    assert torch.allclose(seen[3, 5], torch.tensor(wanted, dtype=torch.float32), atol=1e-3)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_known_white_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (WIDTH, HEIGHT), 1).save(tmp_path / "a.tiff")
    with pytest.raises(UsageError, match="whose white level no file records"):
        read_picture(tmp_path / "a.tiff", WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", ["webp", "tiff", "Png", "bmp", "JPEG"])
@pytest.mark.parametrize("named", [True, False])
def test_every_kind_of_picture_is_found(tmp_path: Path, suffix: str, named: bool) -> None:
    """h15: with its suffix in the file or without."""
    write(tmp_path, name=lambda i: f"images/{i}.{suffix}")
    if not named:
        file = tmp_path / "transforms.json"
        file.write_text(file.read_text().replace(f".{suffix}", ""))
    info = described(tmp_path)
    assert info.size == {"heldout_views": 1, "heldout_pictures": 1}
    assert info.warnings == ()
    assert open_posed(tmp_path).picture(0).mean() > 0.2


def test_missing_pictures_are_counted_and_said(tmp_path: Path) -> None:
    """h15: no silence where a student is not judged by pictures."""
    write(tmp_path, 24)
    (tmp_path / "images/008.png").unlink()
    info = described(tmp_path)
    assert info.size == {"heldout_views": 3, "heldout_pictures": 2}
    assert "2 of 3 held-out images" in info.warnings[0]
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    assert "no held-out images" in described(tmp_path).warnings[0]


# ---- splits -------------------------------------------------------------------------------------------------------


def names(numbers: range) -> list[str]:
    return [f"./images/{i:03d}.png" for i in numbers]


LISTS = {
    "train, val": ({"train": range(12), "val": range(12, 16)}, range(12), range(12, 16)),
    "train, test": ({"train": range(12), "test": range(14, 16)}, range(12), range(14, 16)),
    "train": ({"train": range(12)}, range(12), range(12, 16)),
    "test": ({"test": range(2)}, range(2, 16), range(2)),
    "all": ({"train": range(8), "val": range(8, 12), "test": range(12, 16)}, range(8), range(12, 16)),
}


@pytest.mark.parametrize("lists", LISTS)
def test_a_list_decides_for_all_splits(tmp_path: Path, lists: str) -> None:
    """h08: a split without a list has no frame of another list; "./a" and "a" are one path."""
    said, train, test = LISTS[lists]
    write(tmp_path, 16, **{f"{split}_filenames": names(numbers) for split, numbers in said.items()})
    for split, numbers in (("train", train), ("test", test)):
        assert open_posed(tmp_path, split).names == tuple(f"{i:03d}" for i in numbers)


def test_lists_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "lost", 4, train_filenames=["images/000.png", "images/nine.png"])
    with pytest.raises(UsageError, match=r"images/nine\.png, which no frame has"):
        open_posed(tmp_path / "lost")
    write(tmp_path / "all", 4, train_filenames=names(range(4)))
    with pytest.raises(UsageError, match="for test: none is left"):
        open_posed(tmp_path / "all", "test")
    write(tmp_path / "both", 4, train_filenames=names(range(3)), test_filenames=names(range(2, 4)))
    with pytest.raises(UsageError, match="1 of them are training frames"):
        open_posed(tmp_path / "both", "test")


def test_files_of_splits_are_not_mixed_with_one_of_all(tmp_path: Path) -> None:
    """h08: transforms_train.json and transforms.json in one folder; what the latter holds out may be trained on."""
    write(tmp_path, 16)
    content = (tmp_path / "transforms.json").read_text()
    (tmp_path / "transforms_train.json").write_text(content)
    assert len(open_posed(tmp_path)) == 16
    with pytest.raises(UsageError, match=r"no transforms_test\.json"):
        open_posed(tmp_path, "test")
    (tmp_path / "transforms_val.json").write_text(content)
    assert len(open_posed(tmp_path, "test")) == 16


def test_one_view_is_not_its_own_judge(tmp_path: Path) -> None:
    write(tmp_path, 1)
    assert len(open_posed(tmp_path)) == 1
    with pytest.raises(UsageError, match="no views in split 'test'"):
        open_posed(tmp_path, "test")


@pytest.mark.parametrize("key", ["file_path", "mask_path"])
@pytest.mark.parametrize("name", ["a" * 300, "a" * 250 + "/x", "ab/" * 2000])
def test_names_that_no_file_can_have_are_refused(key: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long for the name"):
        open_posed(write(tmp_path, frame=lambda i: {key: name}))


# ---- masks and keys -----------------------------------------------------------------------------------------------


def masked(folder: Path, grey: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(folder / "mask.png")
    return write(folder, frame=lambda i: {"mask_path": "mask.png"})


def test_masked_pixels_leave_training_and_figures(tmp_path: Path) -> None:
    """h10: black leaves out."""
    grey = np.full((HEIGHT, WIDTH), 255, np.uint8)
    grey[:, : WIDTH // 2] = 0
    views = posed_views(str(masked(tmp_path, grey)))
    kept = views.mask(0)
    assert kept is not None
    assert int(kept.sum()) == HEIGHT * WIDTH // 2
    posed = open_posed(tmp_path)
    pixels = Pixels.of(views.train, posed.rgba, posed.mask)
    assert pixels.count == len(posed) * HEIGHT * WIDTH // 2
    whole = posed.rays(0)[1].view(HEIGHT, WIDTH, 3)[:, WIDTH // 2 :].reshape(-1, 3)
    assert torch.allclose(pixels.dirs[: len(whole)], whole, atol=1e-6)
    truth = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    seen = truth.clone()
    seen[:, : WIDTH // 2] = 1 - seen[:, : WIDTH // 2]
    figures: dict[str, list[float]] = {}
    _compare(figures, "teacher", {"teacher": seen, "truth": truth}, kept.view(HEIGHT, WIDTH))
    assert figures["psnr"] == [pytest.approx(100)]
    assert figures["ssim"] == [pytest.approx(1)]


def test_masks_that_keep_nothing_or_are_not_there(tmp_path: Path) -> None:
    folder = masked(tmp_path, np.zeros((HEIGHT, WIDTH), np.uint8))
    posed = open_posed(folder)
    with pytest.raises(UsageError, match="every pixel of the training images is masked"):
        Pixels.of([posed.camera(0)], posed.rgba, posed.mask)
    (folder / "mask.png").unlink()
    with pytest.raises(UsageError, match=r"mask 'mask\.png' does not exist"):
        open_posed(folder)


def test_a_mask_of_a_larger_picture_leaves_out_what_it_touches(tmp_path: Path) -> None:
    grey = np.full((2 * HEIGHT, 2 * WIDTH), 255, np.uint8)
    grey[0, 0] = 0
    mask = open_posed(masked(tmp_path, grey)).mask(0)
    assert mask is not None
    assert mask.logical_not().nonzero().tolist() == [[0, 0]]


def test_keys_that_change_rays_are_refused_and_others_named(tmp_path: Path) -> None:
    """h10: stated facts are read, known to be harmless, refused or named."""
    with pytest.raises(UsageError, match="a rolling shutter, which is not supported"):
        open_posed(write(tmp_path / "a", rolling_shutter=[0, 0, 0.1, 0]))
    open_posed(write(tmp_path / "b", rolling_shutter=[0, 0, 0, 0], aabb_scale=16, is_fisheye=False))
    (warning,) = described(write(tmp_path / "c", frame=lambda i: {"warped_by": i})).warnings
    assert "warped_by" in warning


# ---- lenses and sizes ---------------------------------------------------------------------------------------------


def test_cameras_follow_their_lens(tmp_path: Path) -> None:
    """h11: rays come back to their pixels, in `views:` as in the posed images."""
    write_colmap(tmp_path, cameras(12), binary=False, model=4, lens=(0.03, -0.01, 0.001, 0.0005))
    views = posed_views(str(tmp_path))
    camera = views.train[3]
    origins, dirs = camera.rays()
    wanted = open_posed(tmp_path).rays(3)
    assert torch.allclose(dirs, wanted[1], atol=1e-6)
    numbers, inside = camera.pixels(origins + 2.5 * dirs)
    assert bool(inside.all())
    assert torch.equal(numbers, torch.arange(WIDTH * HEIGHT))
    k1, k2, p1, p2 = 0.03, -0.01, 0.001, 0.0005
    local = dirs.double() @ camera.c2w[:3, :3].double()
    x, y = local[:, 0] / -local[:, 2], local[:, 1] / local[:, 2]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    column = FOCAL * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + WIDTH / 2 - 0.5
    row = FOCAL * (y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)) + HEIGHT / 2 - 0.5
    assert float((column - torch.arange(WIDTH).repeat(HEIGHT)).abs().max()) < 0.01
    assert float((row - torch.arange(HEIGHT).repeat_interleave(WIDTH)).abs().max()) < 0.01


def both(folder: Path) -> Path:
    """mip-NeRF 360: a COLMAP model and the table that was made from it."""
    poses = cameras(12)
    write_colmap(folder, poses, binary=True, model=4, lens=(0.01, 0.0, 0.0, 0.0))
    keep = {f.name: f.read_bytes() for f in (folder / "images").iterdir()}
    write_llff(folder, poses)
    for file in (folder / "images").iterdir():
        file.unlink()
    for name, content in keep.items():
        (folder / "images" / name).write_bytes(content)
    return folder


def test_a_colmap_model_comes_before_its_table(tmp_path: Path) -> None:
    """h12: the table would lose the lens; it is read where a person asks for it."""
    both(tmp_path)
    assert recognise(tmp_path) == "colmap"
    posed = open_posed(tmp_path)
    assert posed.distortion[0].tolist() == [0.01, 0, 0, 0]
    assert torch.allclose(posed.c2w[0], cameras(12)[1], atol=1e-6)
    assert open_posed(tmp_path, kind="llff").kind == "llff"


@pytest.mark.parametrize("rename", [False, True])
def test_a_scaled_folder_counts_with_its_real_size(tmp_path: Path, rename: bool) -> None:
    """h12: 24x16 at a fifth is 5x3, which is 4.8 and 5.33 times smaller, not 5."""
    both(tmp_path)
    (tmp_path / "images_5").mkdir()
    for number, file in enumerate(sorted((tmp_path / "images").iterdir())):
        name = f"image{number:03d}.jpg" if rename else file.name
        Image.new("RGB", (5, 3), (20 * number, 0, 0)).save(tmp_path / "images_5" / name)
    posed = open_posed(tmp_path, downscale=5)
    assert (posed.widths[0], posed.heights[0]) == (5, 3)
    assert float(posed.fx[0]) == pytest.approx(FOCAL * 5 / 24)
    assert float(posed.fy[0]) == pytest.approx(FOCAL * 3 / 16)
    assert float(posed.cx[0]) == pytest.approx(2.5)
    assert float(posed.picture(0)[..., 0].mean()) == pytest.approx(20 / 255, abs=0.02)


def test_without_a_scaled_folder_pixels_are_averaged(tmp_path: Path) -> None:
    both(tmp_path)
    posed = open_posed(tmp_path, downscale=5)
    assert (posed.widths[0], posed.heights[0]) == (4, 3)
    assert float(posed.fx[0]) == float(posed.fy[0]) == FOCAL / 5
    assert posed.picture(0).shape == (3, 4, 3)


def test_pictures_that_were_made_smaller_scale_their_camera(tmp_path: Path) -> None:
    posed = open_posed(write(tmp_path, size=(18, 12)))
    assert (posed.widths[0], posed.heights[0], float(posed.fx[0])) == (18, 12, FOCAL * 0.75)


def test_a_turned_picture_is_refused_in_the_plan(tmp_path: Path) -> None:
    """h12: EXIF rotation applied after the reconstruction."""
    with pytest.raises(UsageError, match="has 16x24 pixels, but its camera 24x16"):
        described(write(tmp_path, size=(HEIGHT, WIDTH)))


def test_more_pixels_than_memory_are_refused_with_the_number_that_helps(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("xarch_pvd.train.pixels.MOST", 1000)
    posed = open_posed(write(tmp_path))
    with pytest.raises(UsageError, match="`--downscale 2`"):
        Pixels.of([posed.camera(i) for i in range(len(posed))], posed.rgba)


# ---- worlds -------------------------------------------------------------------------------------------------------

FAR = torch.tensor([500123.25, 4649776.5, 120.0], dtype=torch.float64)


def far_cameras(count: int = 8) -> torch.Tensor:
    poses = cameras(count)
    poses[:, :3, 3] += FAR
    return poses


def test_places_on_a_map_keep_their_digits(tmp_path: Path) -> None:
    """h09: float32 moves them by a quarter of a metre, so the origin is taken off before."""
    posed = open_posed(write(tmp_path, poses=far_cameras()))
    assert torch.equal(posed.c2w[:, :3, 3], far_cameras()[1:, :3, 3])
    with pytest.raises(UsageError, match="too far from the origin"):
        posed_views(str(tmp_path))
    views = posed_views(str(tmp_path), near_world(posed))
    seen = torch.stack([c.c2w[:3, 3] for c in views.train]).double()
    truth = cameras(8)[1:, :3, 3]
    assert float((torch.cdist(seen, seen) - torch.cdist(truth, truth)).abs().max()) < 1e-5
    assert near_world(open_posed(write(tmp_path / "near"))) == ()


@pytest.mark.slow
def test_a_trained_field_keeps_the_origin_of_its_pictures(tmp_path: Path) -> None:
    """h09: the file says where its world lies, and `views:` of the same folder goes there."""
    from xarch_pvd.source.field_file import load_field_file
    from xarch_pvd.train.train import train_from_pictures

    write(tmp_path / "map", poses=far_cameras())
    train_from_pictures(
        str(tmp_path / "map"),
        arch="tensors",
        options={"preset": "small"},
        steps=2,
        seed=0,
        out=tmp_path / "f.safetensors",
    )
    record, views = load_field_file(tmp_path / "f.safetensors")
    assert max(abs(v) for v in record.aabb) < 10
    assert ViewFacts.from_json(json.loads(json.dumps({"world": views.world}))).world == views.world
    request = DataRequest(
        str(tmp_path / "map"), ViewOptions(), sample={"kind": "rays"}, facts=SimpleNamespace(views=views)
    )
    assert Views().describe(request).size["heldout_views"] == 1
    moved = posed_views(str(tmp_path / "map"), views.world, views.world_of)
    assert max(float(c.c2w[:3, 3].abs().max()) for c in moved.train) < 10


def test_a_world_leads_there_and_back(tmp_path: Path) -> None:
    turn = torch.linalg.qr(torch.rand(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    turn *= torch.det(turn)
    world = (*torch.cat((turn, torch.tensor([[1.0], [2.0], [3.0]]).double()), 1).flatten().tolist(), 0.4)
    posed = open_posed(write(tmp_path))
    moved = posed.in_world(world)
    wanted = 0.4 * (posed.c2w[:, :3, 3] @ turn.T + torch.tensor([1.0, 2.0, 3.0]).double())
    assert torch.allclose(moved.c2w[:, :3, 3], wanted)
    assert torch.allclose(moved.in_world(inverse_world(world)).c2w, posed.c2w)


@pytest.mark.parametrize("applied", [False, True])
def test_cameras_go_into_the_world_of_a_nerfstudio_run(tmp_path: Path, applied: bool) -> None:
    """h13: its transform starts from the capture, before what transforms.json says was applied already."""
    turn = torch.tensor([[0, 0, 1, 0.1], [1, 0, 0, -0.2], [0, 1, 0, 0.3]], dtype=torch.float64)
    scale, poses = 0.4, cameras(8)
    extra: dict[str, Any] = {}
    if applied:
        before = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]], dtype=torch.float64)
        extra = {"applied_transform": before.tolist(), "applied_scale": 2.0}
    write(tmp_path, poses=poses, **extra)
    world = (*turn.flatten().tolist(), scale)
    views = posed_views(str(tmp_path), world, "capture")
    place = poses[0, :3, 3]
    if applied:
        place = before[:, :3].T @ (place / 2.0)
    wanted = scale * (turn[:, :3] @ place + turn[:, 3])
    assert torch.allclose(views.heldout[0].c2w[:3, 3].double(), wanted, atol=1e-5)


def test_the_way_into_its_world_is_read_from_a_nerfstudio_run(tmp_path: Path) -> None:
    """h13: what is recorded is applied."""
    from xarch_pvd.source.formats.record import FieldFile
    from xarch_pvd.source.reference import views_around

    rows = [[0.0, 0.0, 1.0, 0.1], [1.0, 0.0, 0.0, -0.2], [0.0, 1.0, 0.0, 0.3]]
    record = FieldFile(
        arch="hash",
        options={},
        tensors={},
        aabb=(-1.0, -1.0, -1.0, 1.0, 1.0, 1.0),
        details={"dataparser": {"transform": rows, "scale": 0.4}},
    )
    views = views_around(record)
    assert (views.world, views.world_of) == ((*(v for row in rows for v in row), 0.4), "capture")
    assert math.isfinite(views.radius[0])


def test_the_world_of_torch_ngp_needs_its_scale(tmp_path: Path) -> None:
    """h13, for another program: its world is turned, and its files do not say by what it is scaled."""
    write(tmp_path)
    facts = SimpleNamespace(views=ViewFacts(world_of="torch-ngp"))
    for options in (ViewOptions(), ViewOptions(world_scale=0.8)):
        request = DataRequest(str(tmp_path), options, sample={"kind": "rays"}, facts=facts)
        if options.world_scale is None:
            with pytest.raises(UsageError, match=r"data\.options\.world_scale"):
                Views().describe(request)
        else:
            Views().describe(request)
    seen = posed_views(str(tmp_path), (), "torch-ngp", scale=0.8).heldout[0].c2w[:3, 3].double()
    assert torch.allclose(seen, 0.8 * cameras(8)[0, :3, 3][[1, 2, 0]], atol=1e-6)


def test_a_view_without_its_picture_is_shown_without_it() -> None:
    """h15: neither the figures of the view before, nor an end of the report."""
    from xarch_pvd.evaluate.renders import renders_svg
    from xarch_pvd.evaluate.view_samples import ShownViews

    shown = ShownViews()
    picture = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    against, with_truth = {"psnr_teacher": 30.0, "ssim_teacher": 0.9}, {"psnr": 20.0, "ssim": 0.8}
    for there in (False, True):
        truth = {"truth": picture} if there else {}
        figures = with_truth if there else {}
        shown.add(
            {"teacher": picture, "student": 1 - picture, **truth}, {"teacher": figures, "student": against | figures}
        )
    svg = renders_svg(shown.samples())
    assert svg.count("20.00 dB") == 2
    assert svg.count("<image") == 3 + 6
