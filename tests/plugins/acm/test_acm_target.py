"""The target's view of the teacher, and what it makes of the teacher's weights."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from tests.plugins.acm.acm_models import tiny_vit, with_random_gates
from tests.plugins.mohawk.mohawk_models import make_teacher, tiny_facts
from xarch import PlanError, save_weights
from xarch.report import RunInfo
from xarch.testing.models import load_teacher
from xarch_acm.learners import factors, left_out
from xarch_acm.options import AcmOptions
from xarch_acm.target import AcmTarget
from xarch_acm.threshold import ThresholdOptions, checked
from xarch_decoder.testing import token_batch
from xarch_image.effort import effort_map
from xarch_image.report import sections
from xarch_image.shown import ShownPictures
from xarch_image.testing import image_batch

CPU = torch.device("cpu")


def test_the_view_taps_the_teachers_own_values():
    """What an MLP gives is what its block adds after attention, whatever library runs the teacher."""
    teacher = make_teacher(tiny_facts(layers=2))
    viewed = AcmTarget().view(teacher)
    batch = token_batch(teacher.facts.vocab, 2, 9)
    with torch.no_grad():
        own = teacher.collect(batch, {"blocks.1.input", "blocks.1.mixer_out", "blocks.1.output"})
        found = viewed.collect(batch, {"blocks.1.mlp.out", "blocks.1.mixers.attention.o.out", "blocks.0.output"})
    added = own["blocks.1.output"] - own["blocks.1.input"] - own["blocks.1.mixer_out"]
    assert torch.allclose(found["blocks.1.mlp.out"], added, atol=1e-5)
    assert torch.allclose(found["blocks.1.mixers.attention.o.out"], own["blocks.1.mixer_out"], atol=1e-5)
    assert torch.allclose(found["blocks.0.output"], own["blocks.1.input"], atol=1e-5)
    assert viewed.model.module.embed.weight.data_ptr() == teacher.weights()["embed.weight"].data_ptr(), "a copy"


def test_parts_that_are_left_alone_are_the_teachers():
    teacher = make_teacher(tiny_facts(layers=2))
    target = AcmTarget()
    student = target.build(teacher.facts, AcmOptions(), {}, device=CPU)
    planned = target.initialise(student, teacher)
    assert planned.mapped == ()
    assert all(".mlp.gate." in name for name in planned.new)
    student.module.eval()
    groups = student.param_groups()
    assert {*groups["gates"], *groups["learners"], *groups["trunk"]} == set(groups["all"])
    assert all(".mlp." in name for name in groups["learners"])
    batch = token_batch(teacher.facts.vocab, 2, 9)
    with torch.no_grad():
        one, two = (model.collect(batch, {"final"})["final"] for model in (teacher, student))
    assert torch.allclose(one, two, atol=1e-5)
    gates = sum(m.gate_cost for m in student.adaptive.values()) / sum(
        m.cost * m.learners for m in student.adaptive.values()
    )
    assert student.spent() == {"executed": pytest.approx(1 + gates), "deviation": 0.0, "spread": 0.0}


def test_the_control_is_the_teacher_with_the_largest_units_only():
    teacher, target = make_teacher(tiny_facts(layers=2)), AcmTarget()
    student = target.build(teacher.facts, AcmOptions(budget=0.5), {}, device=CPU)
    target.initialise(student, teacher)
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    [(name, control)] = target.controls(teacher, student).items()
    assert [name] == target.control_names(student) == ["truncated-50"]
    assert control.facts == {"keeps": "2 of 4 parts of every module's hidden units"}
    assert all(torch.equal(value, before[key]) for key, value in student.module.state_dict().items())
    batch = token_batch(teacher.facts.vocab, 2, 9)
    with torch.no_grad():
        found = control.model.collect(batch, {"final"})["final"]
        wanted = teacher.collect(batch, {"final"})["final"]
    assert control.model.spent() == {"executed": 0.5, "deviation": 0.0, "spread": 0.0}
    assert not torch.allclose(found, wanted, atol=1e-3)
    module = control.model.student.adaptive["blocks.0.mlp"]
    size = (module.layers[0].weight.norm(dim=1) * module.layers[1].weight.norm(dim=1)) * module.out.weight.norm(dim=0)
    assert size.tolist() == sorted(size.tolist(), reverse=True)


@pytest.mark.parametrize("gates", ["estimate", "fixed"])
def test_a_student_of_all_budgets_trains_at_one_after_another(tmp_path: Path, gates: str):
    student = with_random_gates(tmp_path, gates=gates, sampled_budgets=True)
    batch, path = image_batch(student.facts, 2), next(iter(student.adaptive))
    torch.manual_seed(0)
    student.module.train()
    drawn = set()
    for _ in range(12):
        found = student.collect(batch, {"budget", *([f"{path}.choice"] if gates == "fixed" else [])})
        drawn.add(float(found["budget"][0]))
        if gates == "fixed":
            assert bool((found[f"{path}.choice"].argmax(-1) == 4 * found["budget"][0]).all())
    assert drawn == {0.25, 0.5, 0.75}
    student.module.eval()
    assert {float(student.collect(batch, {"budget"})["budget"][0]) for _ in range(6)} == {0.5}


def test_gates_do_not_learn_to_choose_among_poor_learners(tmp_path: Path):
    teacher, target = load_teacher(tiny_vit(tmp_path)), AcmTarget()
    student = target.build(teacher.facts, AcmOptions(), {}, device=CPU)
    target.initialise(student, teacher)
    context = SimpleNamespace(
        name="threshold",
        options=ThresholdOptions(most_left=1e-4),
        teacher=teacher,
        calibration=lambda samples: [image_batch(teacher.facts, 3)],
        run_teacher=lambda batch, wanted, sink: teacher.run(batch, wanted, sink),
    )
    assert checked(student, context) == pytest.approx(0.0, abs=1e-5)
    for module in student.adaptive.values():
        nn.init.normal_(module.out.weight, std=2.0)
    with pytest.raises(PlanError, match=r"stages\.threshold\.options\.most_left: .* by [\d.]+ nats .*at most 0\.0001"):
        checked(student, context)
    context.options = ThresholdOptions(most_left=None)
    assert checked(student, context) > 1e-4


def test_projections_are_the_nearest_ones_of_their_rank():
    torch.manual_seed(0)
    weight = torch.randn(12, 8)
    into, out = factors(weight, 4)
    left = torch.linalg.svdvals(weight)[4:].norm()
    assert float((weight - out @ into).norm()) == pytest.approx(float(left), rel=1e-4)
    # Units in the order of what they contribute, which is shared evenly between the layers.
    scale = into.norm(dim=1)
    assert torch.allclose(scale, out.norm(dim=0), rtol=1e-4)
    assert scale.tolist() == sorted(scale.tolist(), reverse=True)


def test_projections_of_pictures(tmp_path: Path):
    teacher, target = load_teacher(tiny_vit(tmp_path)), AcmTarget()
    student = target.build(teacher.facts, AcmOptions(modules=["qkv", "o"], budgets=[0.5]), {}, device=CPU)
    planned = target.initialise(student, teacher)
    assert len(student.adaptive) == 4
    assert set(planned.mapped) == {f"{path}.{n}.weight" for path in student.adaptive for n in ("into.0", "out")}
    assert "blocks.0.attn.qkv.out.bias" in planned.copied
    whole, product = teacher.weights()["blocks.0.attn.qkv.weight"], student.adaptive["blocks.0.attn.qkv"]
    left = (whole - product.out.weight @ product.layers[0].weight).square().sum() / whole.square().sum()
    assert left_out(whole, product.units) == pytest.approx(left.item(), rel=1e-3)
    [(_, said)] = target.forecast(student, lambda: teacher).items()
    assert re.fullmatch(r"[\d.]+ % of the squared .* on average, [\d.]+ % at blocks\.\d\.attn\.\w+", said)
    dense = target.build(teacher.facts, AcmOptions(), {}, device=CPU)
    assert target.forecast(dense, lambda: pytest.fail("the teacher was loaded")) == {}
    with pytest.raises(PlanError, match=r"options\.budgets: 0\.25 .* less than the 0\.267 that gates take") as refused:
        target.build(teacher.facts, AcmOptions(modules=["qkv", "o"]), {}, device=CPU)
    assert "student.options.budgets=[0.27,0.5,0.75]" in str(refused.value.hint)
    with pytest.raises(PlanError, match="has no q that can be replaced; it has mlp, o, qkv"):
        target.build(teacher.facts, AcmOptions(modules=["q"]), {}, device=CPU)
    with pytest.raises(PlanError, match=r"blocks\.0\.mlp has 192 hidden units"):
        target.build(teacher.facts, AcmOptions(learners=64).model_copy(update={"learners": 193}), {}, device=CPU)


@pytest.mark.slow
def test_mixers_have_mlps_over_positions_and_over_channels(tmp_path: Path):
    file = tmp_path / "teacher.safetensors"
    save_weights(timm.create_model("mixer_s32_224", num_classes=3, img_size=64).state_dict(), file)
    teacher, target = load_teacher(f"timm:mixer_s32_224?checkpoint={file}&size=64"), AcmTarget()
    student = target.build(teacher.facts, AcmOptions(), {}, device=CPU)
    target.initialise(student, teacher)
    student.module.eval()
    names = [f"blocks.{n}.mlp_{over}" for n in range(8) for over in ("tokens", "channels")]
    assert {path: m.function for path, m in student.adaptive.items()} == dict.fromkeys(names, "gelu")
    batch = image_batch(student.facts, 3)
    with torch.no_grad():
        made, wanted = (model.collect(batch, {"logits"})["logits"] for model in (student, teacher))
    assert torch.allclose(made, wanted, atol=1e-5)


def test_effort_is_what_ran_at_each_position(tmp_path: Path):
    student = with_random_gates(tmp_path)
    batch = image_batch(student.facts, 3)
    with torch.no_grad():
        effort = student.collect(batch, {"effort", "logits"})["effort"]
    executed = student.spent()["executed"]
    gates = sum(m.gate_cost for m in student.adaptive.values()) / sum(
        m.cost * m.learners for m in student.adaptive.values()
    )
    assert effort.shape == (3, 17)
    assert float(effort.mean()) == pytest.approx(executed - gates, abs=1e-6)
    assert effort.unique().numel() > 2
    places = effort_map(effort, student.facts)
    assert torch.equal(places.flatten(1), effort[:, 1:])
    assert effort_map(effort[:, 1:], student.facts) is None
    shown = ShownPictures()
    shown.add(batch, {"student": torch.eye(3)}, places)
    entry = shown.samples([], {}, [], {})[0]
    assert entry["effort"]["mean"] == pytest.approx(float(places[0].mean()))
    [section] = sections(RunInfo(Path("run"), eval={"samples": [entry]}))
    [image] = section.blocks[0].images
    assert "computed: " in image.caption
