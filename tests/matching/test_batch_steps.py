"""Batch steps: repeatable, the same layout in training and validation, and what they say they make."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from xarch import Batch, BatchStep, PlanError, Sink, StepContext, Tap, TapModel, TensorInfo, UsageError
from xarch.registry.loader import get_registry

FACTS = {"classes": 3}


def step(name: str, data: dict[str, Any] | None = None, **options: Any) -> BatchStep:
    registry = get_registry()
    kind: type[BatchStep] = registry.resolve(registry.get("batch_step", name))
    return kind(kind.Options.model_validate(options), FACTS if data is None else data)


def context(seed: int = 0, **given: Any) -> StepContext:
    return StepContext(None, given.pop("teacher", None), generator=torch.Generator().manual_seed(seed), **given)  # type: ignore[arg-type]


def pictures() -> Batch:
    x = torch.arange(6.0)[:, None, None, None].expand(6, 1, 2, 2).clone()
    return Batch({"images": x, "labels": torch.tensor([0, 1, 2, 0, 1, 2])}, 6)


def agrees(made: Mapping[str, TensorInfo], batch: Batch) -> None:
    for key, info in made.items():
        assert batch[key].ndim == len(info.layout), key
        for axis, letter in enumerate(info.layout):
            assert info.shape.get(letter, batch[key].shape[axis]) == batch[key].shape[axis]


def test_mixup_mixes_pictures_and_labels_alike() -> None:
    logged: dict[str, float] = {}
    mixup = step("mixup", alpha=1.0)
    before, after = pictures(), mixup(pictures(), context(log=logged.update))
    agrees(mixup.makes({}), after)
    assert (len(after), after.units) == (6, 6)
    share = logged["mixup"]
    place = torch.arange(6.0)
    partner = ((after["images"].mean((1, 2, 3)) - share * place) / (1 - share)).round().long()
    assert sorted(partner.tolist()) == list(range(6))
    assert partner.tolist() != place.tolist()
    hot = torch.eye(3)[before["labels"]]
    torch.testing.assert_close(after["labels"], share * hot + (1 - share) * hot[partner])
    torch.testing.assert_close(after["images"].mean((1, 2, 3)), share * place + (1 - share) * partner)


def test_mixup_is_the_same_after_a_resume_and_differs_from_step_to_step() -> None:
    a, b, c = (step("mixup")(pictures(), context(seed)) for seed in (1, 1, 2))
    assert torch.equal(a["images"], b["images"])
    assert not torch.equal(a["images"], c["images"])


def test_validation_is_not_mixed_but_has_the_same_layout() -> None:
    """Vision 2.8: a loss on a key that a step makes failed with `validation`."""
    after = step("mixup")(pictures(), context(training=False))
    assert torch.equal(after["images"], pictures()["images"])
    assert after["labels"].argmax(1).tolist() == pictures()["labels"].tolist()
    assert after["labels"].shape == (6, 3)


def test_both_views_of_a_picture_are_mixed_alike() -> None:
    batch = pictures()
    batch.tensors["images@teacher"] = batch["images"] + 1
    after = step("mixup")(batch, context())
    torch.testing.assert_close(after["images@teacher"], after["images"] + 1)


def test_mixup_leaves_batches_alone_as_often_as_asked() -> None:
    mixup = step("mixup", prob=0.5)
    same = sum(torch.equal(mixup(pictures(), context(s))["images"], pictures()["images"]) for s in range(200))
    assert 70 < same < 130


def test_mixup_wants_to_know_the_classes() -> None:
    with pytest.raises(PlanError, match="classes"):
        step("mixup", data={})
    assert step("mixup", data={}, labels=None).makes({}) == {}


class Doubler(TapModel):
    """Gives 2 x as logits, as a tensor or as a structured value with ``full()``."""

    def __init__(self, structured: bool) -> None:
        self.module, self.family, self.facts, self.structured = nn.Identity(), "none", None, structured

    def taps(self) -> Mapping[str, Tap]:
        return {"logits": Tap("logits", "logits", "BK")}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        class Factored:
            def full(self) -> torch.Tensor:
                return 2 * batch["x"]

        sink("logits", Factored() if self.structured else 2 * batch["x"])


@pytest.mark.parametrize("structured", [False, True])
def test_a_teacher_labels_its_own_view(structured: bool) -> None:
    x, other = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[5.0, 2.0, 0.0]])
    batch = Batch({"x": x, "x@teacher": other}, 1)
    teacher = Doubler(structured)
    labels = step("teacher-labels")
    found = labels(batch, context(teacher=teacher))
    agrees(labels.makes({}), found)
    assert found["teacher_labels"].tolist() == [0]
    soft = step("teacher-labels", form="probabilities", temperature=2.0, key="soft", teacher="big")
    found = soft(batch, context(teachers={"big": teacher}))
    agrees(soft.makes({}), found)
    torch.testing.assert_close(found["soft"], other.softmax(-1))
    own = torch.tensor([[0.0, 1.0, 3.0]])
    found = soft(Batch({"x": x, "x@teacher": other, "x@big": own}, 1), context(teachers={"big": teacher}))
    torch.testing.assert_close(found["soft"], own.softmax(-1))
    assert soft.work({}, student=1.0, teacher=7.0) == 7.0
    assert soft.taps() == {"big": {"logits"}}


def test_repeat_gives_every_copy_a_mask() -> None:
    """Encdec W7: one forward pass for two losses on different inputs."""
    repeat = step("repeat", names=["gold", "kd"])
    found = repeat(pictures(), context())
    agrees(repeat.makes({}), found)
    assert len(found) == 12
    assert found.units == 6
    assert found["gold_mask"].tolist() == [1.0] * 6 + [0.0] * 6
    assert found["kd_mask"].tolist() == [0.0] * 6 + [1.0] * 6
    assert found["labels"].tolist() == pictures()["labels"].tolist() * 2


def test_repeat_keeps_what_a_mask_left_out() -> None:
    batch = Batch({"input_ids": torch.zeros(2, 3).long(), "loss_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}, 6)
    repeat = step("repeat", names=["gold", "kd"], mask="loss_mask")
    found = repeat(batch, context())
    agrees(repeat.makes({"loss_mask": TensorInfo("BL")}), found)
    assert found["kd_mask"].tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("training", [True, False])
def test_a_shuffled_teacher_sees_other_samples_and_the_student_its_own(training: bool) -> None:
    batch = pictures()
    batch.tensors["images@teacher"], batch.tensors["images@a"] = batch["images"] + 10, batch["images"] + 20
    batch.tensors["images@student"] = batch["images"] + 30
    shuffle = step("shuffle-teacher")
    after = shuffle(batch, context(training=training))
    agrees(shuffle.makes({k: TensorInfo("BCHW" if "images" in k else "B") for k in batch.tensors}), after)
    for side, offset in (("teacher", 10), ("a", 20)):
        seen = after.seen_by(side, "teacher")
        places = (seen["images"].mean((1, 2, 3)) - offset).long()
        assert sorted(places.tolist()) == list(range(6))
        assert all(place != at for at, place in enumerate(places.tolist()))
        assert seen["labels"].tolist() == (places % 3).tolist()
    assert torch.equal(after.seen_by("student")["images"], batch["images@student"])
    assert torch.equal(after["labels"], batch["labels"])


def test_one_sample_cannot_be_shuffled() -> None:
    with pytest.raises(UsageError, match="one sample"):
        step("shuffle-teacher")(pictures().narrow(0, 1), context())
