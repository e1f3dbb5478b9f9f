"""Points and rays where they matter: importance, the levels of PVD-AL, poses between poses; all of it resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.plugins.pvd.tiny_field import OPTIONS_OF, write_teacher
from xarch import Batch, DataRequest, UsageError
from xarch.api import convert
from xarch_field import Camera, look_at
from xarch_field.facts import ViewFacts
from xarch_field.model.rendering import ray_points, ray_weights
from xarch_pvd.data.active import EPOCH, WARM, HardPoses, HardRays
from xarch_pvd.data.provider import Views
from xarch_pvd.data.sampling import ViewOptions
from xarch_pvd.data.views import SHAKE, random_camera
from xarch_pvd.objectives import kept_samples
from xarch_pvd.source.source import FieldOptions, FieldSource

CPU = torch.device("cpu")
ERROR = "render"


def teacher_of(folder: Path) -> Any:
    ref = write_teacher(folder / "teacher.safetensors").removeprefix("field:")
    return FieldSource().load(ref, FieldOptions(samples=48), device=CPU, dtype=torch.float32)


def stream(teacher: Any, samples: int = 200, **sample: Any) -> Any:
    opened = {"split": "train", "samples": samples, "processors": {}, "seed": 5, "teacher": teacher}
    return Views().open(DataRequest("teacher", ViewOptions(rays_per_view=64), sample=sample, **opened))


def opaque(teacher: Any, batch: Batch) -> float:
    points = ray_points(teacher.field, batch["origins"], batch["dirs"], 48)
    sigma = points.unpack(teacher.field.density(teacher.field.sigma_raw(points.x_N3)))
    return float((ray_weights(sigma * points.delta_RK)[1] > 0.5).float().mean())


@pytest.mark.slow
def test_rays_of_importance_meet_matter_and_a_floor_stays(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path)
    plain = opaque(teacher, next(stream(teacher, kind="rays")))
    aimed = opaque(teacher, next(stream(teacher, kind="rays", importance=1.0, floor=0.15)))
    assert plain < 0.6
    assert 0.75 < aimed < 0.97, "fifteen percent of the rays are any of the picture"


def test_a_camera_finds_the_pixel_of_a_point() -> None:
    camera = Camera(7, 5, 6.0, 6.5, 3.4, 2.6, look_at(torch.tensor([2.0, 1.0, 1.5]), torch.zeros(3)))
    origins, dirs = camera.rays()
    pixels, inside = camera.pixels(origins + 1.7 * dirs)
    assert bool(inside.all())
    assert pixels.tolist() == list(range(35))
    assert not bool(camera.pixels(origins - 1.7 * dirs)[1].any())


@pytest.mark.slow
def test_points_of_importance_follow_the_sample_key(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path)
    plain, all_seen = (stream(teacher, kind="points", importance=i, floor=0.0).visible for i in (0.0, 1.0))
    assert (plain, all_seen) == (0, 200)
    assert stream(teacher, kind="points", importance=1.0, floor=0.25).visible == 150


def losses(batch: Batch) -> dict[str, Tensor]:
    """Rays that start at larger x are harder."""
    return {ERROR: batch["origins"][:, 0] + 10}


def test_the_worst_poses_come_back_turned_a_little(tmp_path: Path) -> None:
    drawn = stream(teacher_of(tmp_path), 64, kind="rays", levels=["pose"], hard=0.25)
    places: list[float] = []
    for _ in range(EPOCH * (WARM + 8)):
        batch = next(drawn)
        places.append(float(batch["origins"][0, 0]))
        drawn.take_losses(batch, losses(batch))
    first, last = places[: EPOCH * WARM], places[-EPOCH * 4 :]
    assert sum(last) / len(last) > sum(first) / len(first) + 0.3
    assert len({round(p, 4) for p in last}) < len(last), "some poses are drawn again"


def test_the_hardest_rays_come_back(tmp_path: Path) -> None:
    drawn = stream(teacher_of(tmp_path), 64, kind="rays", levels=["ray"], hard=0.1)
    seen: list[Tensor] = []
    for _ in range(20):
        batch = next(drawn)
        again = [r for r in torch.cat((batch["origins"], batch["dirs"]), dim=-1) if seen and _in(r, torch.cat(seen))]
        seen.append(torch.cat((batch["origins"], batch["dirs"]), dim=-1)[losses(batch)[ERROR].topk(12).indices])
        drawn.take_losses(batch, losses(batch))
    assert len(again) >= 6


def _in(ray: Tensor, rays: Tensor) -> bool:
    return bool((rays == ray).all(dim=1).any())


def test_pools_are_part_of_the_position(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path)
    first, second = (stream(teacher, 64, kind="rays", levels=["pose", "ray"], hard=0.3) for _ in range(2))
    start = first.state_dict()
    for _ in range(EPOCH * (WARM + 1) + 7):
        batch = next(first)
        first.take_losses(batch, losses(batch))
    assert len(first.poses.pool_P34) > 0
    second.load_state_dict(first.state_dict())
    for _ in range(EPOCH + 3):
        batch, same = next(first), next(second)
        assert all(torch.equal(batch[k], same[k]) for k in batch.tensors)
        first.take_losses(batch, losses(batch))
        second.take_losses(same, losses(same))
    first.load_state_dict(start)
    assert len(first.poses.pool_P34) == len(first.rays.pool_R6) == 0


def test_levels_without_a_loss_of_rays_are_a_mistake(tmp_path: Path) -> None:
    drawn = stream(teacher_of(tmp_path), 8, kind="rays", levels=["ray"])
    with pytest.raises(UsageError, match="the match 'render'"):
        drawn.take_losses(next(drawn), {"samples.rgb": torch.zeros(8)})


def test_pools_forget_what_was_drawn_again() -> None:
    generator = torch.Generator().manual_seed(0)
    pool = HardRays(4, 0.5)
    pool.take(torch.arange(12.0).view(4, 3), torch.zeros(4, 3), torch.tensor([0.0, 3.0, 1.0, 2.0]))
    assert pool.draw(generator) is None, "the pool does not hold a batch yet"
    pool.take(torch.full((4, 3), 7.0), torch.zeros(4, 3), torch.ones(4))
    drawn = pool.draw(generator)
    assert drawn is not None
    pool.take(torch.full((4, 3), 9.0), torch.zeros(4, 3), torch.ones(4))
    assert not any(_in(torch.cat((o, torch.zeros(3))), pool.pool_R6) for o in drawn[0] if float(o[0]) != 7)
    camera = Camera(4, 4, 4.0, 4.0, 2.0, 2.0, torch.eye(4))
    assert HardPoses(0.1).draw(camera, 4, generator) is camera


def test_samples_of_weight_count_and_some_of_all() -> None:
    weight = torch.zeros(2, 20)
    weight[0, 5:8] = 0.3
    kept = kept_samples(weight, torch.tensor([0.2, 0.7]), keep=0.15, uniform=0.0)
    assert kept[0].nonzero().flatten().tolist() == [5, 6, 7]
    assert not bool(kept[1].any()), "a ray that is mostly empty has no samples of weight"
    spread = kept_samples(weight, torch.rand(2), keep=0.15, uniform=0.2)
    assert spread[1].sum() in (4, 5)
    assert bool(spread[0, 5:8].all())


def test_cameras_inside_a_scene_stay_near_its_own() -> None:
    inside = [look_at(torch.tensor([float(i), 0.0, 1.0]), torch.tensor([float(i), 5.0, 1.0]))[:3] for i in range(12)]
    views = ViewFacts(poses=tuple(tuple(p.reshape(-1).tolist()) for p in inside))
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        c2w = random_camera(views, generator).c2w
        assert torch.allclose(c2w[:3, :3] @ c2w[:3, :3].T, torch.eye(3), atol=1e-5)
        nearest = min(float((c2w[:3, 3] - p[:, 3]).norm()) for p in inside)
        assert nearest <= 0.5 + 1e-5
        assert float(-c2w[1, 2]) > float(torch.cos(torch.tensor(1.8 * SHAKE)))


@pytest.mark.slow
def test_an_interrupted_run_with_levels_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "recipe": "pvd-active",
        "teacher": write_teacher(tmp_path / "teacher.safetensors"),
        "student.target": "hash",
        "student.options": OPTIONS_OF["hash"],
        "teacher_options": {"samples": 24},
        "data.options": {"rays_per_view": 8},
        "stages.volume.skip": True,
        "stages.points.units": 4096,
        "stages.rays.units": 40 * 64,
        "stages.rays.batch": 64,
        "stages.rays.checkpoint_every": 10,
        "stages.rays.log_every": 1,
        "evaluate.samples": 1,
        "evaluate.baseline": False,
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "export.profiles": [],
    }
    convert(overrides=given, out=tmp_path / "whole")
    take, calls = HardRays.take, []

    def stumble(self: HardRays, *values: Tensor) -> None:
        calls.append(1)
        if len(calls) == 27:
            raise RuntimeError("power cut")
        take(self, *values)

    monkeypatch.setattr(HardRays, "take", stumble)
    with pytest.raises(Exception, match="power cut"):
        convert(overrides=given, out=tmp_path / "broken")
    assert sorted(p.name for p in (tmp_path / "broken/stages/02-rays/checkpoints").iterdir()) == ["step-10", "step-20"]
    monkeypatch.setattr(HardRays, "take", take)
    convert(overrides=given, out=tmp_path / "broken", resume=True)
    rows = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "broken")]
    assert len(rows[0]) > 40
    whole, broken = ([{k: v for k, v in json.loads(r).items() if k != "time"} for r in part] for part in rows)
    assert whole == broken
    files = [tmp_path / run / "student" / "model.safetensors" for run in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
