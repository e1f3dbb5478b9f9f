"""Class groups, figures of the metric, and alikeness of layers."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn

from xarch import Batch, EvaluationRequest, Sink, UsageError
from xarch_image import ImageFacts, ImageModel, adapt, class_groups
from xarch_image.calibration import Calibration
from xarch_image.cka import Alikeness
from xarch_image.metric import Top1, Top1Options

FACTS = ImageFacts("oracle", 10, 1, 4, 4, (), 16, mean=(0.0,), std=(1.0,))


class Oracle(ImageModel):
    """Its first pixel times 10 is the class it answers, for every class below ``until``; else class 0."""

    def __init__(self, until: int) -> None:
        super().__init__(FACTS)
        self.module, self.until = nn.Identity(), until

    def read(self, x_BCHW: Tensor, wanted: Collection[str], sink: Sink) -> None:
        said_B = (10 * x_BCHW[:, 0, 0, 0]).round().long()
        sink("logits", nn.functional.one_hot(torch.where(said_B < self.until, said_B, 0), 10).float())


def evaluate(models: dict[str, ImageModel], *, labels: bool = True, **data: object):
    label_B = torch.arange(10).repeat(2)
    images = (label_B / 10)[:, None, None, None].expand(-1, 1, 4, 4)
    tensors = {"images": images, **({"labels": label_B} if labels else {})}
    students = {k: m for k, m in models.items() if k != "teacher"}
    batches = lambda: iter([Batch(tensors, 20)])  # noqa: E731
    request = EvaluationRequest(models.get("teacher"), students, batches, data=data, options=Top1Options())
    return Top1().evaluate(request)


def test_groups_by_shares_of_few_classes_and_by_counts_of_many() -> None:
    counts = [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]
    assert {k: len(v) for k, v in class_groups(counts).items()} == {"head": 3, "mid": 4, "tail": 3}
    hundred = [int(500 * 0.01 ** (i / 99)) for i in range(100)]
    assert {k: len(v) for k, v in class_groups(hundred).items()} == {"head": 35, "mid": 35, "tail": 30}
    assert {k: len(v) for k, v in class_groups(hundred, [36, 71]).items()} == {"head": 36, "mid": 35, "tail": 29}
    assert class_groups(list(reversed(counts)))["head"] == [9, 8, 7]
    assert class_groups([5] * 10) == {}
    assert class_groups(counts, [1, 9])["mid"] == list(range(1, 9))
    with pytest.raises(UsageError, match="two positions"):
        class_groups(counts, [9, 1])


def test_figures_overall_by_group_and_by_class() -> None:
    found = evaluate({"student": Oracle(7), "teacher": Oracle(10)}, class_counts=[100 - 9 * i for i in range(10)])
    assert found.student["top1"] == pytest.approx(0.7)
    assert found.teacher["top1"] == 1
    assert found.student["balanced_accuracy"] == pytest.approx(0.7)
    assert [found.student[f"recall.{g}"] for g in ("head", "mid", "tail")] == [1, 1, 0]
    assert found.student["recall.3"] == 1
    assert found.student["recall.9"] == 0
    assert found.gated["agreement"] == pytest.approx(0.7)


def test_calibration_of_all_images_and_of_those_of_a_group() -> None:
    score_BK = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 1.0]])
    found = Calibration()
    label_B = torch.tensor([0, 1, 1, 1])
    for part in (slice(0, 1), slice(1, 4)):
        found.add(score_BK[part], label_B[part])
    sure, less = float(score_BK[0].double().softmax(-1)[0]), float(score_BK[3].double().softmax(-1)[1])
    assert found.error() == pytest.approx((abs(2 - 3 * sure) + (1 - less)) / 4)
    assert found.error([1]) == pytest.approx((abs(1 - 2 * sure) + (1 - less)) / 3)
    assert found.error([0]) == pytest.approx(1 - sure)
    figures = evaluate({"student": Oracle(7)}, class_counts=[100 - 9 * i for i in range(10)])
    assert {"ece", "ece.head", "ece.mid", "ece.tail"} <= figures.student.keys()
    assert (figures.directions["ece.tail"], figures.directions["recall.tail"]) == (False, True)


def test_without_labels_agreement_with_the_teacher_is_measured() -> None:
    found = evaluate({"student": Oracle(5), "teacher": Oracle(10)}, labels=False)
    assert (found.metric, found.student) == ("agreement", {"agreement": 0.5})
    with pytest.raises(UsageError, match="no labels"):
        evaluate({"student": Oracle(5)}, labels=False)


def test_pictures_that_only_one_model_gets_right_are_kept() -> None:
    shown = evaluate({"student": Oracle(7), "teacher": Oracle(10)}).samples
    rights = {(s["answers"]["teacher"]["right"], s["answers"]["student"]["right"]) for s in shown if "png" in s}
    assert rights == {(True, True), (True, False)}


def test_alikeness_sees_through_rotation_and_scale_only() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(64, 8, generator=generator) for _ in range(2))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    alike = Alikeness()
    for part in (slice(0, 2), slice(2, 40), slice(40, 64)):
        student = {"same": x[part], "other": noise[part]}
        alike.add(student, {"turned": 3 * x[part] @ rotation, "shifted": x[part] + 5})
    found = alike.to_json()
    assert found is not None
    assert found["cka"][0] == pytest.approx([1, 1], abs=1e-3)
    assert max(found["cka"][1]) < 0.3
    assert Alikeness().to_json() is None


def test_images_are_adapted_to_size_and_channels() -> None:
    grey = adapt(torch.rand(2, 3, 9, 7), FACTS)
    assert grey.shape == (2, 1, 4, 4)
    flat = adapt(torch.full((1, 1, 2, 2), 0.25), FACTS)
    assert torch.allclose(flat, torch.full((1, 1, 4, 4), 0.25))
    with pytest.raises(UsageError, match="5 channels"):
        adapt(torch.rand(1, 5, 4, 4), FACTS)
