"""How much each of two classifiers counts is chosen on validation pictures, and is then part of the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from xarch import Batch, UsageError
from xarch_image.fusion import Fuse, FuseOptions, balanced
from xarch_timm.build import create, describe
from xarch_timm.model import TimmStudent

IMAGES = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SMALL = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


@dataclass
class Context:
    """What the stage reads of its context."""

    student: TimmStudent
    labels: Tensor | None
    name: str = "fuse"
    options: FuseOptions = field(default_factory=FuseOptions)

    def validation(self, samples: int) -> list[Batch]:
        given = {"images": IMAGES} | ({} if self.labels is None else {"labels": self.labels})
        return [Batch(given, len(IMAGES)).narrow(i, i + 100) for i in (0, 100)]


def student(model: str = "deit_tiny_distilled_patch16_224", **arguments: Any) -> TimmStudent:
    facts = describe(model, classes=6, channels=1, size=(8, 8), arguments={**SMALL, **arguments})
    torch.manual_seed(0)
    made = TimmStudent(create(facts), facts)
    for layer in made.classifiers().values():
        torch.nn.init.normal_(layer.weight)
    for name, layer in made.classifiers().items():
        said_BK = answers(made.variants()[name])
        with torch.no_grad():
            layer.bias -= said_BK.mean(0)
            layer.weight /= said_BK.std(0)[:, None]
            layer.bias /= said_BK.std(0)
    return made


def answers(of: Any) -> Tensor:
    with torch.no_grad():
        return of.collect(Batch({"images": IMAGES}, len(IMAGES)), {"logits"})["logits"]


def test_the_best_share_becomes_part_of_the_weights() -> None:
    model = student()
    before = {name: answers(variant) for name, variant in model.variants().items()}
    wanted = 0.25 * before["cls"] + 0.75 * before["dist"]
    outcome = Fuse().run(Context(model, wanted.argmax(-1)))
    share = outcome.metrics["share"]
    assert share == pytest.approx(0.25, abs=0.1)
    assert outcome.metrics["balanced_accuracy"] > outcome.metrics["balanced_accuracy.mean"]
    torch.testing.assert_close(answers(model), share * before["cls"] + (1 - share) * before["dist"])
    assert outcome.decisions == {"fusion": share}
    model.decide(outcome.decisions)
    after = {name: answers(variant) for name, variant in model.variants().items()}
    torch.testing.assert_close(after.pop("mean"), (before["cls"] + before["dist"]) / 2)
    torch.testing.assert_close(after, before)
    with pytest.raises(ValueError, match="decisions"):
        model.decide({"layers": [1]})


def test_classes_count_alike_however_many_pictures_they_have() -> None:
    assert balanced(torch.tensor([0, 0, 0, 2])).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_one_picture_more_is_no_reason() -> None:
    model = student()
    shown = model.variants()
    label_B = answers(model).argmax(-1)
    other_B = (0.6 * answers(shown["cls"]) + 0.4 * answers(shown["dist"])).argmax(-1)
    differ = int((label_B != other_B).nonzero()[0])
    label_B[differ] = other_B[differ]
    outcome = Fuse().run(Context(model, label_B))
    assert "standard error" in outcome.undone
    assert not outcome.decisions


def test_nothing_changes_where_the_mean_is_best() -> None:
    model = student()
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    outcome = Fuse().run(Context(model, answers(model).argmax(-1)))
    assert outcome.undone
    assert not outcome.decisions
    torch.testing.assert_close(dict(model.module.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: Context(student("vit_tiny_patch16_224"), torch.zeros(200).long()), "one classifier"),
        (lambda: Context(student(), None), "no labels"),
    ],
)
def test_what_cannot_be_fused_is_refused(made: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Fuse().run(made())
