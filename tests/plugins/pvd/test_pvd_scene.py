"""The procedural scene: geometry by closed form, a folder that reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xarch import UsageError
from xarch.planning.resolve import providers
from xarch.registry.loader import get_registry
from xarch.testing.models import load_teacher
from xarch_field import Camera, sphere_pose
from xarch_pvd.data.datasets.open import open_posed
from xarch_pvd.train import scene
from xarch_pvd.train.scene import FOV, RADIUS, distances, render_view, trace, write_scene


def test_rays_hit_where_geometry_says() -> None:
    down = torch.tensor([0.0, 0.0, -1.0])
    origins = torch.tensor([[0.0, 0, 3], [0.5, 0, 3], [0.62, 0.62, 3], [0.9, 0.9, 3]])
    colour, hit = trace(origins, down.expand(4, 3))
    assert hit.tolist() == [True, True, True, False]
    assert torch.equal(colour[3], torch.zeros(3))
    # Top of the ball: normal up, lamp 0.9 / |(.5, .3, .9)|, mirrored ray up again.
    lamp = 0.9 / (0.25 + 0.09 + 0.81) ** 0.5
    wanted = torch.tensor([0.9, 0.75, 0.2]) * (0.35 + 0.65 * lamp) + 0.25 * lamp**20
    assert torch.allclose(colour[0], wanted.clamp(max=1), atol=5e-3)


def test_distances_by_hand() -> None:
    x = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    torus, ball, slab = distances(x).unbind(-1)
    assert float(torus[0]) == pytest.approx(-0.16)
    assert float(ball[1]) == pytest.approx(0.35)
    assert float(slab[2]) == pytest.approx(1 - 0.45 - 0.06 - 0.02, abs=1e-6)


def test_folder_reads_back(tmp_path: Path) -> None:
    write_scene(tmp_path, views=3, size=32, seed=1, val=1, test=2)
    posed = open_posed(tmp_path)
    assert [len(open_posed(tmp_path, s)) for s in ("train", "val", "test")] == [3, 1, 2]
    assert posed.box == (-1, -1, -1, 1, 1, 1)
    assert torch.allclose(posed.c2w[:, :3, 3].norm(dim=-1), torch.full((3,), RADIUS).double(), atol=1e-5)
    again = render_view(posed.camera(0))
    assert float((posed.rgba(0) - again).abs().amax()) < 1.1 / 255
    share = float((again[..., 3] > 0.5).float().mean())
    assert 0.2 < share < 0.45


def test_the_highlight_moves_with_the_view() -> None:
    seen = []
    for azimuth in (0.5, 3.6):
        camera = Camera.from_angle(48, 48, FOV, sphere_pose(azimuth, 0.6, RADIUS))
        seen.append(float(render_view(camera)[..., :3].amax()))
    assert seen[0] != pytest.approx(seen[1], abs=1e-3)


def test_the_same_seed_gives_the_same_folder(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_scene(tmp_path / name, views=1, size=12, seed=seed, val=1, test=1)
    a, b, c = ((tmp_path / n / "train" / "r_0.png").read_bytes() for n in "abc")
    assert a == b != c


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one or more"):
        write_scene(tmp_path, views=0)


def test_the_demo_is_judged_by_its_scene(tmp_path: Path) -> None:
    teacher = load_teacher(get_registry().create("family", "radiance-field").tiny_teacher(tmp_path))
    opened = providers(get_registry())("views:demo", {})
    batch = next(opened.open(split="heldout", samples=1, teacher=teacher, facts=teacher.facts))
    colour, hit = scene.trace(batch["origins"], batch["dirs"])
    middle = torch.where(hit[:, None], colour, batch["background"])
    assert batch["picture"].shape == middle.shape
    # The picture has four rays a pixel, this one: edges differ.
    assert (
        float((batch["picture"] - middle).abs().mean()) < 0.02 < float((batch["picture"] - middle.flip(0)).abs().mean())
    )
    assert "picture" not in next(opened.open(split="validation", samples=1, teacher=teacher)).tensors
