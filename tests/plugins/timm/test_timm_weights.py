"""Weights of timm models: files, other sizes, channels and classes, and students that start from their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import xarch
from xarch import UsageError, load_teacher, save_weights
from xarch.planning.resolve import resolve_target
from xarch.registry.loader import get_registry
from xarch_image.testing import SIDE, tiny_classifier, tiny_pictures
from xarch_timm.foreign import renamed

VIT = "test_vit?patch_size=8&depth=2"


def vit_file(folder: Path, size: int = 32, classes: int = 3, channels: int = 3) -> Path:
    torch.manual_seed(1)
    net = timm.create_model("test_vit", patch_size=8, depth=2, img_size=size, num_classes=classes, in_chans=channels)
    save_weights(net.state_dict(), folder / "vit.safetensors")
    return folder / "vit.safetensors"


def test_a_file_below_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    name = vit_file(tmp_path).name
    assert load_teacher(f"timm:{VIT}&size=32&checkpoint=~/{name}").facts.classes == 3


def test_classes_and_channels_are_the_files(tmp_path: Path) -> None:
    teacher = load_teacher(f"timm:{VIT}&size=32&checkpoint={vit_file(tmp_path, channels=1)}")
    assert (teacher.facts.classes, teacher.facts.channels, teacher.facts.height) == (3, 1, 32)
    grey, colour = torch.rand(2, 1, 32, 32), torch.rand(2, 3, 20, 24)
    for images in (grey, colour):
        assert teacher.collect(xarch.Batch({"images": images}, 2), {"logits"})["logits"].shape == (2, 3)


def test_a_file_of_another_size_needs_to_be_asked_for(tmp_path: Path) -> None:
    file = vit_file(tmp_path, size=64)
    with pytest.raises(UsageError, match="differs in pos_embed"):
        load_teacher(f"timm:{VIT}&checkpoint={file}")
    resized = load_teacher(f"timm:{VIT}&size=32&checkpoint={file}")
    assert resized.facts.height == 32
    assert resized.module.pos_embed.shape[1] == 1 + 16


def test_a_file_of_another_model_is_refused_with_its_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no classifier of a test_resnet; 0 of its"):
        load_teacher(f"timm:test_resnet?checkpoint={vit_file(tmp_path)}")
    with pytest.raises(UsageError, match=r"lacks blocks\.2"):
        load_teacher(f"timm:test_vit?patch_size=8&size=32&depth=3&checkpoint={vit_file(tmp_path)}")
    with pytest.raises(UsageError, match="names no weights"):
        load_teacher("timm:test_resnet")


@pytest.mark.parametrize("wrong", ["size=big", "channels=0", "mean=dark"])
def test_a_wrong_value_in_a_reference_is_named(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"timm:test_resnet.* {wrong.partition('=')[0]}"):
        load_teacher(f"timm:test_resnet?checkpoint={tmp_path}/net.safetensors&{wrong}")
    target = resolve_target(get_registry(), "timm", {"model": f"test_resnet?{wrong}"})
    with pytest.raises(UsageError, match=rf"timm:test_resnet.* {wrong.partition('=')[0]}"):
        target.adapter.own_weights(None, target.options)


@pytest.mark.slow
def test_pickles_are_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    file = tmp_path / "net.pth"
    torch.save({"state_dict": timm.create_model("test_resnet", num_classes=4).state_dict()}, file)
    with pytest.raises(UsageError, match="pickle"):
        load_teacher(f"timm:test_resnet?size=32&checkpoint={file}")
    assert load_teacher(f"timm:test_resnet?size=32&checkpoint={file}", {"allow_pickle": True}).facts.classes == 4


def test_students_start_from_their_own_weights_and_the_plan_says_so(tmp_path: Path) -> None:
    own = vit_file(tmp_path, classes=7)
    plan = xarch.plan(
        {
            "teacher": tiny_classifier(tmp_path),
            "recipe": "kd",
            "student": {"target": f"timm:{VIT}&size={SIDE}&checkpoint={own}"},
            "data": {"ref": tiny_pictures(tmp_path / "pictures", each=8)},
            "export": {"profiles": []},
        }
    )
    assert plan.student.target == "timm"
    assert plan.student.new == ["head.weight", "head.bias"]
    assert "blocks.0.attn.qkv.weight" in plan.student.own
    target = resolve_target(get_registry(), "timm", plan.student.options)
    facts = load_teacher(plan.config.teacher).facts
    student = target.adapter.build(facts, target.options, {}, device=torch.device("cpu"))
    loaded = target.adapter.own_weights(student, target.options)
    assert set(loaded) == set(plan.student.own)
    kept = xarch.load_weights(own)
    assert all(torch.equal(student.module.state_dict()[name], kept[name]) for name in loaded)


def test_names_of_efficientnet_pytorch() -> None:
    with torch.device("meta"):
        own = timm.create_model("tf_efficientnet_lite0").state_dict()
    given = ["_conv_stem.weight", "_bn0.bias", "_blocks.0._project_conv.weight", "_blocks.0._bn2.bias", "_fc.bias"]
    given += ["_blocks.2._expand_conv.weight", "_blocks.2._bn2.bias", "_bn1.bias"]
    names = list(renamed({name: name for name in given}, own))
    assert set(names) <= set(own)
    assert names[2:4] == ["blocks.0.0.conv_pw.weight", "blocks.0.0.bn2.bias"]
    assert names[5:7] == ["blocks.1.1.conv_pw.weight", "blocks.1.1.bn3.bias"]
    assert renamed({"conv_stem.weight": 1}, own) == {"conv_stem.weight": 1}
