"""What students are before training: fitted planes and lines, and heads of teachers with a feature of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.pvd.foreign_fields import save_nerfstudio, save_tensorf
from tests.plugins.pvd.tiny_field import OPTIONS_OF, write_teacher
from xarch import plan
from xarch_field import render
from xarch_field.student import FieldStudent
from xarch_field.teacher import FieldTeacher
from xarch_pvd.data.views import fixed_cameras
from xarch_pvd.evaluate.metric import psnr
from xarch_pvd.source.formats.recognise import read_field
from xarch_pvd.source.latent import LatentField
from xarch_pvd.source.source import FieldOptions, FieldSource
from xarch_pvd.source.stitch import StitchedTeacher
from xarch_pvd.targets.representations import options_of
from xarch_pvd.targets.representations.records import from_file
from xarch_pvd.targets.target import CPTarget, FieldTarget, HashTarget, VMTarget

CPU = torch.device("cpu")


def load(ref: str, **options: Any) -> FieldTeacher:
    return FieldSource().load(
        ref.removeprefix("field:"), FieldOptions(samples=48, **options), device=CPU, dtype=torch.float32
    )


def started(target: FieldTarget, teacher: FieldTeacher, **options: Any) -> FieldStudent:
    torch.manual_seed(0)
    chosen = options_of(target.arch, {**OPTIONS_OF[target.arch], **options}, "options")
    student = target.build(teacher.facts, chosen, {}, device=CPU)
    planned, done = target.initialisation(teacher.facts, student), target.initialise(student, teacher)
    assert (planned.copied, planned.mapped, planned.new) == (done.copied, done.mapped, done.new)
    # The facts of a wrapped field do not list its tensors, so its plan cannot name those that are not read.
    assert planned.sources is None or planned == done
    return student


def likeness(student: FieldStudent, teacher: FieldTeacher) -> float:
    rays = fixed_cameras(teacher.facts.views, 1, "heldout")[0].rays()
    with torch.no_grad():
        seen = [render(m.field, *rays, torch.ones(3), samples=48)["rgb"] for m in (student, teacher)]
    return psnr(*seen)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "least"), [(VMTarget(), 26.0), (CPTarget(), 21.0)])
@pytest.mark.parametrize("arch", ["hash", "tensors"])
def test_planes_and_lines_start_close_to_their_teacher(
    target: FieldTarget, least: float, arch: str, tmp_path: Path
) -> None:
    teacher = load(write_teacher(tmp_path / "teacher.safetensors", arch))
    fitted = likeness(started(target, teacher), teacher)
    assert fitted > least
    assert fitted > likeness(started(target, teacher, start="random"), teacher) + 5


def test_a_finer_student_with_other_ranks_starts_close_too(tmp_path: Path) -> None:
    teacher = load(write_teacher(tmp_path / "teacher.safetensors", "vm"))
    student = started(VMTarget(), teacher, resolution=(70, 30, 40), density_rank=9, colour_rank=11)
    assert likeness(student, teacher) > 26


def test_ranks_beyond_the_grid_are_filled_without_harm(tmp_path: Path) -> None:
    teacher = load(write_teacher(tmp_path / "teacher.safetensors", "vm"))
    student = started(VMTarget(), teacher, resolution=(20, 6, 20), density_rank=12, colour_rank=12)
    assert likeness(student, teacher) > 15


def test_a_stitched_feature_carries_the_colours(tmp_path: Path) -> None:
    teacher = load(write_teacher(tmp_path / "teacher.safetensors", "tensors"))
    assert isinstance(teacher, StitchedTeacher)
    generator = torch.Generator().manual_seed(1)
    cells = teacher.field.occupancy.nonzero()[::3]
    x = teacher.field.to_world((cells + torch.rand(len(cells), 3, generator=generator)) / len(teacher.field.occupancy))
    d = torch.nn.functional.normalize(torch.randn(len(x), 3, generator=generator), dim=-1)
    values = teacher.query(x, d, ("feature", "rgb", "sigma"))
    solid = values["sigma"] > values["sigma"].median()
    seen = teacher.stitch.head.colour(values["feature"][:, 1:], d)
    assert psnr(seen[solid], values["rgb"][solid]) > 25


@pytest.mark.slow
def test_a_stitch_is_the_same_every_time_and_moves_no_other_random_number(tmp_path: Path) -> None:
    ref = write_teacher(tmp_path / "teacher.safetensors", "tensors")
    before = torch.get_rng_state()
    first, second = load(ref).query, load(ref).query
    x = torch.rand(5, 3) - 0.5
    torch.set_rng_state(before)
    assert torch.equal(first(x, None, ("feature",))["feature"], second(x, None, ("feature",))["feature"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_a_feature_of_another_width_is_matched_in_the_volume_stage(tmp_path: Path) -> None:
    path = tmp_path / "field.th"
    save_tensorf(path)
    planned = plan(
        overrides={
            "recipe": "pvd",
            "teacher": f"field:{path}",
            "teacher_options": {"allow_pickle": True},
            "student.target": "hash",
            "export.profiles": [],
        }
    )
    assert [s.name for s in planned.stages] == ["volume", "points", "rays"]
    teacher = load(str(path), allow_pickle=True)
    student = started(HashTarget(), teacher)
    assert torch.equal(student.field.color_net[0].weight, teacher.stitch.head[0].weight)
    assert teacher.query(torch.zeros(3, 3), None, ("feature",))["feature"].shape == (3, 16)


@pytest.mark.parametrize(("kind", "width"), [("nerfacto", 15), ("vanilla", 256), ("tensorf", 27)])
def test_other_projects_fields_show_what_their_heads_read(kind: str, width: int, tmp_path: Path) -> None:
    path = save_nerfstudio(tmp_path / "run", kind) / "nerfstudio_models" / "step-000029999.ckpt"
    field = from_file(read_field(path, allow_pickle=True))
    assert isinstance(field, LatentField)
    assert field.latent(torch.rand(4, 3)).shape == (4, width)


def test_planes_take_their_own_recipe_and_say_so(tmp_path: Path) -> None:
    ref = write_teacher(tmp_path / "teacher.safetensors", "hash")
    planned = plan(overrides={"teacher": ref, "student.target": "cp", "export.profiles": []})
    assert [s.name for s in planned.stages] == ["points", "rays"]
    assert set(planned.student.mapped) >= {"lines.0", "basis.weight"}
    assert json.loads(planned.model_dump_json())["student"]["copied"] == [f"color_net.{i}.weight" for i in range(3)]
