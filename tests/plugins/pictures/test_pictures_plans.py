"""What a plan makes of pictures: a method, epochs from their number, and classes that fit the teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import xarch
from tests.plugins.pictures.picture_files import write_folder
from xarch import PlanError, save_weights
from xarch.run.inspection import inspect


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    timm = pytest.importorskip("timm")
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(timm.create_model("test_resnet", num_classes=3).state_dict(), file)
    return f"timm:test_resnet?checkpoint={file}&size=32"


def planned(teacher: str, data: Path, config: Any = None, **more: Any) -> Any:
    sets = {"teacher": teacher, "student.target": "timm", "student.options.model": "test_vit", "runtime.device": "cpu"}
    sets |= {"data.ref": f"images:{data}", "data.options.size": 32, "export.profiles": [], **more}
    return xarch.plan(config, overrides=sets)


@pytest.mark.slow
def test_method_and_epochs_are_chosen(teacher: str, tmp_path: Path) -> None:
    plan = planned(teacher, write_folder(tmp_path / "p", each=100))
    stage = plan.config.stages["distil"]
    assert plan.config.recipe == "ofa-kd"
    samples = plan.stages[0].units / stage.epochs
    assert stage.epochs == round(40_000 / round(samples)), "small data are seen more often"
    assert planned(teacher, tmp_path / "p", **{"stages.distil.epochs": 3}).config.stages["distil"].epochs == 3
    assert (plan.config.evaluate.samples, plan.config.evaluate.batch) == (45, 100), "all that are held out"
    assert not plan.warnings, "what the family chose fits the data"
    assert (plan.name, plan.student.title) == ("test_resnet-to-test_vit", "timm:test_vit")


def test_without_a_teacher_the_control_that_needs_none_is_chosen(teacher: str, tmp_path: Path) -> None:
    own = {"student.options.size": 32}
    plan = planned("none", write_folder(tmp_path / "p", each=10), **own)
    assert plan.config.recipe == "no-teacher"
    assert list(plan.config.stages["distil"].matches) == ["labels"]


def test_data_can_be_inspected(tmp_path: Path) -> None:
    found = inspect(f"images:{write_folder(tmp_path / 'p', each=10)}")
    assert (found["unit"], found["facts"]["classes"], found["size"]["pictures"]) == ("image", 3, 30)
    assert {tensor["name"]: tensor["layout"] for tensor in found["tensors"]}["images"] == "BCHW"


def test_classes_that_do_not_fit_the_teacher_end_the_plan(teacher: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "p", each=10)
    (folder / "class2").rename(folder / "other")
    write_folder(tmp_path / "q", each=10)
    (tmp_path / "q" / "class0").rename(folder / "fourth")
    with pytest.raises(PlanError, match="4 classes"):
        planned(teacher, folder)


def test_pictures_without_labels_serve_methods_that_read_none(teacher: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "p", each=20)
    hidden = {"data.options.labels": False}
    with pytest.raises(PlanError, match="labels"):
        planned(teacher, folder, {"recipe": "kd"}, **hidden)
    alone = {"recipe": "kd", "stages": {"distil": {"matches": {"labels": None}}}}
    assert planned(teacher, folder, alone, **hidden).stages[0].steps > 0


@pytest.mark.slow
def test_the_demo_is_planned_from_its_packaged_teacher() -> None:
    pytest.importorskip("sklearn")
    plan = xarch.plan("ofa-demo", overrides={"runtime.device": "cpu"})
    assert plan.stages[0].seconds < 240
    assert set(plan.config.stages["distil"].matches) == {"kd", "exits", "labels"}


@pytest.mark.slow
@pytest.mark.parametrize("removed", [(), ("kd", "exits")])
def test_the_demo_reaches_its_gate_and_labels_alone_do_not(tmp_path: Path, removed: tuple[str, ...]) -> None:
    config = {"recipe": "ofa-demo", "stages": {"distil": {"matches": dict.fromkeys(removed)}}}
    overrides = {"runtime.device": "cpu", "export.profiles": []}
    if removed:
        with pytest.raises(xarch.XarchError, match="top1"):
            xarch.convert(config, out=tmp_path / "run", overrides=overrides)
    else:
        xarch.convert(config, out=tmp_path / "run", overrides=overrides)


def test_pictures_can_all_be_for_training_and_the_final_figures(tmp_path: Path) -> None:
    given = {"data.ref": f"images:{write_folder(tmp_path / 'p', each=10)}", "data.options.size": 32, "teacher": "none"}
    given |= {"data.options.validation": 0, "data.options.calibration": 0, "recipe": "no-teacher"}
    given |= {"student.target": "timm", "student.options": {"model": "test_resnet", "size": 32}, "export.profiles": []}
    given |= {"stages.distil.epochs": 1, "stages.distil.batch": 8}
    given |= {"runtime.device": "cpu", "runtime.tensorboard": False}
    run = xarch.convert(sets=["stages.distil.validation=null"], overrides=given, out=tmp_path / "run")
    assert json.loads((run.path / "eval.json").read_text())["n"] == 4
