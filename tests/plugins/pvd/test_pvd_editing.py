"""Edited fields: values, optical depth, occupancy, files, and conversions that start from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import xarch
from tests.plugins.pvd.foreign_fields import save_nerfstudio, save_tensorf, save_torch_ngp
from tests.plugins.pvd.tiny_field import OPTIONS_OF, trained, write_teacher
from xarch import DataRequest, UsageError
from xarch.api import convert
from xarch.cli.app import run
from xarch.testing import SourceConformance
from xarch_field import RadianceField, named_tensors, render
from xarch_field.model import occupancy as occupancies
from xarch_pvd.editing.build import edited
from xarch_pvd.editing.fields import Composed, EditedField, Moved
from xarch_pvd.editing.matter import settle
from xarch_pvd.editing.schema import plain, read_edits
from xarch_pvd.source.reference import field_of, open_field
from xarch_pvd.source.source import FieldOptions, FieldSource
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.targets.representations.records import to_file

SLAB = {"erase": {"box": [[-0.8, -0.8, -1.0], [0.8, 0.8, -0.3]]}}
BALL = {"crop": {"sphere": {"centre": [0, 0, 0.35], "radius": 0.4}}}


class Fog(RadianceField):
    """Constant density in a ball, of a colour that depends on the direction."""

    arch = "fog"
    has_feature = False

    def __init__(self, density: float = 3.0, radius: float = 0.5) -> None:
        super().__init__(aabb=[[-1] * 3, [1] * 3], sigma_clip=(-100, 10))
        self.density_, self.radius = density, radius
        self.set_occupancy(torch.ones(16, 16, 16))

    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Any) -> dict[str, Tensor]:
        inside = self.to_world(u_N3).norm(dim=-1) <= self.radius
        raw = torch.where(inside, math.log(self.density_), -100.0)
        return {"sigma_raw": raw, **({} if d_N3 is None else {"rgb": 0.5 + 0.5 * d_N3})}

    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        return {"all": named_tensors(self)}

    def param_groups(self) -> dict[str, list[str]]:
        return {"grid": [], "net": []}


def points(count: int = 4000, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = (2 * torch.rand(count, 3, generator=generator) - 1) * spread
    return x, torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)


def changed(field: RadianceField, *edits: dict[str, Any], others: Any = ()) -> EditedField:
    made = edited(field, read_edits(list(edits)), iter(others))
    assert isinstance(made, EditedField)
    settle(made, keep_box=False)
    return made


@pytest.mark.slow
def test_erased_and_cropped_points_are_empty_and_the_rest_is_as_it_was() -> None:
    field = trained("tensors")
    x, d = points()
    sigma, rgb = field(x, d)
    for edit, inside in (
        (SLAB, (x[:, :2].abs() <= 0.8).all(-1) & (x[:, 2] <= -0.3)),
        ({"crop": SLAB["erase"]}, ~((x[:, :2].abs() <= 0.8).all(-1) & (x[:, 2] <= -0.3))),
        (BALL, (x - torch.tensor([0, 0, 0.35])).norm(dim=-1) > 0.4),
    ):
        made = changed(field, edit)
        values = made.query(x, d, ("sigma", "rgb"))
        assert float(values["sigma"][inside].max()) <= 1.01e-4
        # Far from any matter the new occupancy leaves the haze out.
        seen = ~inside & made.occupied(x)
        assert int((sigma[seen] > 0.2).sum()) > 50
        torch.testing.assert_close(values["sigma"][seen], sigma[seen], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(values["rgb"][seen], rgb[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "affine",
    [
        {"scale": 2.0},
        {"scale": 0.3, "rotate": {"x": 20, "z": 75}, "translate": [0.4, -0.2, 3.0], "about": [0.1, 0, 0]},
        {"matrix": [[0, -2, 0, 1], [2, 0, 0, 0], [0, 0, 2, -1]]},
        {"matrix": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]},
    ],
)
def test_optical_depth_and_colour_move_along(affine: dict[str, Any]) -> None:
    field = trained("tensors")
    made = changed(field, {"affine": affine})
    assert isinstance(made, Moved)
    x, d = points(2000)
    turn = torch.linalg.inv(made.back)
    scale = float(torch.linalg.det(turn).abs() ** (1 / 3))
    there, along = x @ turn.T + made.shift, torch.nn.functional.normalize(d @ turn.T, dim=-1)
    values, before = made.query(there, along, ("sigma", "rgb")), field.query(x, d, ("sigma", "rgb"))
    seen = made.occupied(there)
    assert int((before["sigma"][seen] > 0.2).sum()) > 50
    torch.testing.assert_close(values["sigma"][seen] * scale, before["sigma"][seen], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(values["rgb"], before["rgb"], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_ball_of_fog_is_as_opaque_at_any_size() -> None:
    """1 - exp(-3 · 1) through the middle, whatever the scale; three times as thin fog three times as long."""
    for scale in (0.25, 1.0, 4.0):
        made = changed(Fog(), {"affine": {"scale": scale, "rotate": {"y": 30}, "translate": [7, 0, 0]}})
        origin, ahead = torch.tensor([[7.0, 0, 40.0]]), torch.tensor([[0.0, 0, -1]])
        seen = render(made, origin, ahead, torch.zeros(3), samples=512)
        assert float(seen["acc"]) == pytest.approx(1 - math.exp(-3), abs=5e-3)
        # The fog's colour is that of the direction in its own axes.
        wanted = 0.5 + 0.5 * torch.tensor([[0.5, 0, -math.cos(math.pi / 6)]])
        assert torch.allclose(seen["rgb"] / seen["acc"], wanted, atol=1e-2)


def test_unequal_scales_keep_the_optical_depth_on_average() -> None:
    made = changed(Fog(radius=0.9), {"affine": {"scale": [2, 1, 0.5]}})
    assert made.gain == pytest.approx(1.0)
    with torch.no_grad():
        values = [float(made.sigma_raw(torch.tensor([[1.0, 0.2, 0.1]])).exp())]
    assert values == [pytest.approx(3.0)]


@pytest.mark.parametrize(("mode", "density"), [("sum", 5.0), ("max", 3.0)])
def test_composed_densities_and_colours(mode: str, density: float) -> None:
    moved = {"affine": {"rotate": {"z": 90}}}
    made = changed(Fog(), {"compose": {"with": "x", "mode": mode, "edits": [moved]}}, others=[Fog(2.0, 0.3)])
    assert isinstance(made, Composed)
    x, d = torch.tensor([[0.1, 0, 0], [0.4, 0, 0], [0.0, 0.7, 0]]), torch.tensor([[1.0, 0, 0]] * 3)
    values = made.query(x, d, ("sigma", "rgb"))
    assert values["sigma"].tolist() == [pytest.approx(v, abs=1e-3) for v in (density, 3.0, 0.0)]
    first, second = torch.tensor([1.0, 0.5, 0.5]), torch.tensor([0.5, 0.0, 0.5])
    assert torch.allclose(values["rgb"][0], (3 * first + 2 * second) / 5, atol=1e-3)
    assert torch.allclose(values["rgb"][1], first, atol=1e-3)
    # Where nothing is, something between; never a division by nothing.
    assert bool(((values["rgb"][2] >= second) & (values["rgb"][2] <= first)).all())


def test_occupancy_and_box_follow_added_matter() -> None:
    """A copied grid would hide what an edit brings in (it is rebuilt after edits that add matter)."""
    field = trained("tensors")
    aside = {"compose": {"with": "x", "edits": [{"affine": {"scale": 0.5, "translate": [1.5, 0, 0]}}]}}
    made = changed(field, aside, others=[field])
    assert float(made.aabb[1, 0]) > 1.6
    x, _ = points(60_000, 2.2)
    dense = made.at(x, None, {"sigma"})["sigma"] > 0.5
    assert int(dense[x[:, 0] > 1.1].sum()) > 100
    assert bool(made.occupied(x)[dense].all())
    assert float(made.occupancy.float().mean()) < 0.6
    # What has gone leaves no occupied cells, and a crop draws the box around what is left.
    assert float(changed(Fog(), SLAB).aabb[0, 2]) > -0.4
    assert float(Fog().occupancy.float().mean()) == 1
    kept = changed(field, BALL).aabb
    assert bool(((kept[1] - kept[0]) < 0.95).all())


@pytest.mark.parametrize("arch", sorted(OPTIONS))
def test_every_representation_can_be_edited(arch: str) -> None:
    torch.manual_seed(1)
    grid = torch.rand(8, 8, 8) > 0.4
    options = OPTIONS[arch].model_validate(OPTIONS_OF[arch])
    field = build_field(arch, options, aabb=[[-1] * 3, [1] * 3], occupancy=grid).eval()
    with torch.no_grad():
        for name in field.param_groups()["grid"]:
            field.get_parameter(name).mul_(5)
    made = changed(field, {"erase": {"box": [[0, -1, -1], [1, 1, 1]]}}, {"affine": {"rotate": {"z": 180}}})
    x, d = points(3000)
    values = made.query(x, d, ("sigma", "sigma_raw", "rgb", *(("feature",) if field.has_feature else ())))
    assert float(values["sigma"][x[:, 0] < -1e-3].max()) < 1.01e-4
    turned = x * torch.tensor([-1.0, -1, 1])
    around = d * torch.tensor([-1.0, -1, 1])
    kept = (x[:, 0] > 1e-3) & made.occupied(x) & field.occupied(turned)
    torch.testing.assert_close(values["sigma"][kept], field(turned, d)[0][kept], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(values["rgb"], field(turned, around)[1], rtol=1e-3, atol=1e-4)
    if field.has_feature:
        assert torch.equal(values["feature"][:, 0], values["sigma_raw"])
        torch.testing.assert_close(made.colour(values["feature"], d), values["rgb"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensorf", "torch-ngp", "nerfstudio"])
def test_fields_of_other_projects_can_be_edited(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "field.pth"
    if kind == "tensorf":
        save_tensorf(path)
    elif kind == "torch-ngp":
        save_torch_ngp(path, "ngp-vm")
    else:
        path = save_nerfstudio(tmp_path / "run", "instant-ngp")
    field = field_of(open_field(str(path), allow_pickle=True).record)
    box = field.march_box()
    low, middle, high = box[0].tolist(), box.mean(dim=0).tolist(), box[1].tolist()
    edits = [{"crop": {"box": [low, [middle[0], *high[1:]]]}}, {"affine": {"scale": 2}}]
    opened = open_field(str(path), allow_pickle=True, edits=edits)
    made = field_of(opened.record)
    x = made.to_world(torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)))
    values = made.query(x, torch.tensor([[0.0, 0, 1]]).expand(2000, 3), ("sigma", "rgb"))
    assert all(bool(v.isfinite().all()) for v in values.values())
    assert float(values["sigma"].max()) > 0.01
    assert made.warp == "aabb"
    assert opened.record.details["edits"] == ["crop", "affine"]


@pytest.mark.slow
def test_an_edited_field_is_a_file_and_can_be_edited_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors", "tensors")
    (tmp_path / "edits.yaml").write_text(f"- {json.dumps(SLAB)}\n")
    words = ["pvd", "edit", teacher, "--edits", str(tmp_path / "edits.yaml"), "--out", str(tmp_path / "a.safetensors")]
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["edits"] == ["erase"]
    (tmp_path / "teacher.safetensors").rename(tmp_path / "gone.safetensors")
    x, d = points()
    alone = changed(trained("tensors"), SLAB).query(x, d, ("sigma_raw",))["sigma_raw"]
    opened = open_field(str(tmp_path / "a.safetensors"))
    assert torch.equal(field_of(opened.record).query(x, d, ("sigma_raw",))["sigma_raw"], alone) or torch.allclose(
        field_of(opened.record).query(x, d, ("sigma_raw",))["sigma_raw"], alone, atol=0.2
    )
    again = open_field(str(tmp_path / "a.safetensors"), edits=[BALL, {"affine": {"scale": 0.5}}])
    assert again.record.details["edits"] == ["erase", "crop", "affine"]
    assert len(again.record.options["parts"]) == 1
    assert again.views.radius[0] < opened.views.radius[0]


def test_edits_survive_their_own_data() -> None:
    given = [SLAB, {"affine": {"rotate": {"z": 30}}}, {"compose": {"with": "a", "edits": [BALL]}}]
    once = plain(read_edits(given))
    assert plain(read_edits(once)) == once
    assert once[2]["compose"]["with"] == "a"


class TestEditedSource(SourceConformance):
    """An edited field keeps the promises of any teacher."""

    def make_ref(self, folder: Path) -> str:
        from xarch_pvd.export.saving import save

        edits = [SLAB, {"compose": {"with": str(folder / "t.safetensors"), "mode": "max"}}]
        write_teacher(folder / "t.safetensors")
        save(open_field(str(folder / "t.safetensors"), edits=edits), folder / "e.safetensors", "xarch")
        return f"field:{folder / 'e.safetensors'}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "inherits", "feature"),
    [
        (SLAB, ("factors", "basis", "color_net"), True),
        (BALL, ("basis", "color_net"), True),
        ({"affine": {"scale": 2}}, ("factors", "basis", "color_net"), True),
        ({"affine": {"rotate": {"z": 5}}}, ("basis", "color_net"), True),
        ({"compose": {"with": "TEACHER"}}, (), False),
    ],
)
def test_what_a_student_may_start_from(
    tmp_path: Path, edit: dict[str, Any], inherits: tuple[str, ...], feature: bool
) -> None:
    teacher = write_teacher(tmp_path / "t.safetensors")
    given = json.loads(json.dumps([edit]).replace("TEACHER", teacher))
    facts = FieldSource().describe(teacher, FieldOptions(edits=given)).facts
    assert (facts.inherits, facts.feature) == (inherits, feature)
    plan = xarch.plan(
        overrides={
            "recipe": "pvd",
            "teacher": teacher,
            "teacher_options.edits": given,
            "student.target": "vm",
            "student.options": {**OPTIONS_OF["vm"], "start": "random"},
            "export.profiles": [],
        }
    )
    copied = {n.split(".")[0] for n in plan.student.copied}
    assert copied == (set(inherits) - {"factors"}) | ({"planes", "lines"} if "factors" in inherits else set())
    assert ("volume" in [s.name for s in plan.stages]) == feature


@pytest.mark.slow
def test_an_edited_teacher_is_converted_and_its_hole_stays_empty(tmp_path: Path) -> None:
    given = {
        "recipe": "pvd",
        "teacher": write_teacher(tmp_path / "teacher.safetensors"),
        "teacher_options": {"samples": 48, "edits": [SLAB]},
        "student.target": "vm",
        "student.options": OPTIONS_OF["vm"],
        "budget": 120_000,
        "evaluate.samples": 2,
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "export.profiles": [],
    }
    done = convert(overrides=given, out=tmp_path / "run")
    found = json.loads((done.path / "eval.json").read_text())
    assert found["student"]["psnr_teacher"] > 24
    student = xarch.load(done.path)
    assert student.sigma_clip[0] == -100
    teacher = field_of(open_field(given["teacher"], edits=[SLAB]).record)
    assert torch.equal(student.occupancy, teacher.occupancy)
    x, _ = points(20_000)
    deep = (x[:, 2] < -0.4) & (x[:, 2] > -0.5) & (x[:, :2].abs() < 0.6).all(-1)
    assert float(trained().query(x[deep], None, ("sigma",))["sigma"].mean()) > 1
    assert float(student.query(x[deep], None, ("sigma",))["sigma"].mean()) < 0.1


def test_pictures_of_a_scene_do_not_judge_what_it_became(tmp_path: Path) -> None:
    from xarch_pvd.data.provider import Views
    from xarch_pvd.data.sampling import ViewOptions
    from xarch_pvd.train import scene

    folder = scene.write_scene(tmp_path / "scene", views=2, size=8, val=1, test=2)
    teacher_ref = write_teacher(tmp_path / "t.safetensors")
    for edits, seen in (([], True), ([SLAB], False)):
        options = FieldOptions(edits=edits)
        teacher = FieldSource().load(
            teacher_ref.removeprefix("field:"), options, device=torch.device("cpu"), dtype=torch.float32
        )
        stream = Views().open(
            DataRequest(
                str(folder),
                ViewOptions(),
                split="heldout",
                samples=1,
                sample={},
                processors={},
                seed=0,
                teacher=teacher,
            )
        )
        assert ("picture" in next(stream).tensors) == seen


@pytest.mark.slow
def test_other_edits_are_another_teacher(tmp_path: Path) -> None:
    ref = write_teacher(tmp_path / "t.safetensors").removeprefix("field:")
    seen = {
        FieldSource().load(ref, FieldOptions(edits=edits), device=torch.device("cpu"), dtype=torch.float32).fingerprint
        for edits in ([], [SLAB], [{"compose": {"with": ref}}], [{"compose": {"with": ref, "mode": "max"}}])
    }
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([{"ereze": {}}], r"edits\[0\]: unknown edit 'ereze'; did you mean 'erase'"),
        ([SLAB, {"erase": {"box": [[0, 0, 0], [1, 1, -1]]}}], r"edits\[1\]\.erase: the box is empty"),
        ([{"erase": {}}], "either a box or a sphere"),
        ([{"erase": {**SLAB["erase"], **BALL["crop"]}}], "either a box or a sphere"),
        (
            [{"erase": {"box": [[5, 5, 5], [6, 6, 6]]}}],
            r"edits\[0\]\.erase: the region \[5\.0, 5\.0, 5\.0\] .*nothing of the scene",
        ),
        ([{"crop": {"box": [[0.95] * 3, [1] * 3]}}], r"edits\[0\]\.crop: .*nothing of the scene"),
        ([{"erase": {"sphere": {"centre": [0, 0, 0], "radius": 9}}}], "nothing is left"),
        ([{"affine": {"scale": [1, 0, 1]}}], r"edits\[0\]\.affine: the matrix .* is singular"),
        ([{"affine": {"matrix": [[1, 2, 3], [2, 4, 6], [0, 0, 1]]}}], "singular"),
        ([{"affine": {"matrix": [[1, 0], [0, 1], [0, 0]]}}], "three rows of 3 numbers"),
        ([{"affine": {"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "scale": 2}}], "cannot be combined with scale"),
        ([{"affine": {"scale": float("nan")}}], r"affine\.scale"),
        ([{"affine": {"rotate": {"w": 3}}}], r"rotate\.w"),
        ([{"compose": {"with": "no.pth"}}], r"compose with 'no\.pth': .*no such file"),
        (
            [{"compose": {"with": "no.pth", "edits": [{"blur": {}}]}}],
            r"edits\[0\]\.compose\.edits\[0\]: unknown edit",
        ),
        ([{"erase": 3}], r"edits\[0\]\.erase is 3, expected its options"),
        ([SLAB | BALL], "expected one edit"),
        ("[{erase: {box: ", "edits:1:16: not valid YAML"),
        ("missing.yaml", "missing.yaml does not exist"),
        ({"erase": {}}, "expected a list of edits"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, edits: Any, message: str) -> None:
    teacher = write_teacher(tmp_path / "t.safetensors")
    with pytest.raises(UsageError, match=message):
        open_field(teacher, edits=edits)


def test_a_damaged_edited_file_is_named(tmp_path: Path) -> None:
    record = open_field(write_teacher(tmp_path / "t.safetensors"), edits=[SLAB]).record
    part = {k: v for k, v in record.options["parts"][0].items() if k != "warp"}
    for options in ({**record.options, "parts": [part]}, {**record.options, "edits": [{"blur": {}}]}, {"edits": []}):
        with pytest.raises(UsageError):
            field_of(replace(record, options=options))


def test_haze_of_a_low_clip_is_no_matter() -> None:
    """Inside occupied cells an empty field still has the density of its lower clip."""
    options = OPTIONS["tensors"].model_validate({"resolution": 8})
    field = build_field("tensors", options, aabb=[[-1] * 3, [1] * 3], occupancy=torch.ones(8, 8, 8).bool())
    with torch.no_grad():
        field.volume.zero_()
        field.volume[..., 0] = -5
        field.volume[5:, 5:, 5:, 0] = 4
    made = changed(field_of(to_file(field)), {"affine": {"scale": 3}})
    assert float(made.occupancy.float().mean()) < 0.9
    assert bool(occupancies.lookup(made.occupancy, torch.tensor([[0.8, 0.8, 0.8]])))
    assert float(made.aabb[0].min()) > -0.5
