"""Divergences and losses on labels over dense logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.matching.objectives.dense_values import SIZES, batch, loss, objective, tap, value
from xarch import MatchContext, PlanError, Tap
from xarch.registry.loader import get_registry

CLASSES = ("BK", "BLK", "BCHW")


def _last(x: Tensor, layout: str) -> Tensor:
    return x.movedim(layout.index("C"), -1) if "C" in layout else x


@pytest.mark.parametrize("layout", CLASSES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_divergences_against_torch(layout: str, temperature: float, direction: str) -> None:
    """Vision 2.15: `kl` knew nothing but factored logits."""
    student, teacher = value(layout), value(layout, 1)
    q = F.log_softmax(_last(student, layout) / temperature, -1)
    p = F.log_softmax(_last(teacher, layout) / temperature, -1)

    def kl(of: Tensor, to: Tensor) -> Tensor:
        return F.kl_div(to, of, reduction="none", log_target=True).sum(-1)

    m = ((p.exp() + q.exp()) / 2).log()
    want = {"forward": kl(p, q), "reverse": kl(q, p), "js": 0.5 * (kl(p, m) + kl(q, m))}[direction]
    found = objective("kl", layout, temperature=temperature, direction=direction)
    torch.testing.assert_close(
        found(student, teacher, batch()), temperature**2 * want.reshape(4, -1).mean(1), rtol=1e-5, atol=1e-6
    )


def test_a_divergence_in_closed_form() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.8, 0.2]]).log()
    want = 0.8 * torch.log(torch.tensor(1.6)) + 0.2 * torch.log(torch.tensor(0.4))
    torch.testing.assert_close(objective("kl", "BK")(student, teacher, batch(1)), want[None])


def test_classes_that_the_teacher_rules_out_add_nothing() -> None:
    teacher = torch.tensor([[0.0, 1.0, -torch.inf]])
    for direction in ("forward", "js"):
        got = objective("kl", "BK", direction=direction)(value("BK")[:1, :3], teacher, batch(1))
        assert bool(got.isfinite().all())


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_gradients_of_divergences(direction: str) -> None:
    student, teacher = value("BLK", dtype=torch.float64).requires_grad_(), value("BLK", 1, dtype=torch.float64)
    found = objective("kl", "BLK", direction=direction, temperature=2.0)
    assert torch.autograd.gradcheck(lambda s: found(s, teacher, batch()), (student,))


def test_several_teachers_are_averaged_by_weight_as_probabilities() -> None:
    taps = {"a": tap("BK"), "b": tap("BK")}
    context = MatchContext("m", weights={"a": 3.0, "b": 1.0})
    found = objective("kl", tap("BK"), taps, context)
    values = {"a": value("BK", 1), "b": value("BK", 2)}
    mean = 0.75 * values["a"].softmax(-1) + 0.25 * values["b"].softmax(-1)
    torch.testing.assert_close(
        found(value("BK"), values, batch()), objective("kl", "BK")(value("BK"), mean.log(), batch())
    )


def test_agreement_is_logged() -> None:
    found = objective("kl", "BK")
    teacher = value("BK")
    student = torch.cat([teacher[:3], -teacher[3:]])
    found(student, teacher, batch())
    assert found.monitor() == {"agreement": 0.75}


def labels(layout: str, seed: int = 5) -> Tensor:
    letters = layout.replace("C", "") if "C" in layout else layout[:-1]
    shape = [SIZES[letter] for letter in letters]
    return torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(seed))


def declared(layout: str) -> Tap:
    return Tap("labels", "data", layout)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("layout", CLASSES)
def test_cross_entropy_is_that_of_torch(layout: str, smoothing: float) -> None:
    student, label = value(layout), labels(layout)
    label.view(-1)[0] = -100
    found = objective("cross-entropy", tap(layout), declared("B"), smoothing=smoothing)
    channels_first = student.movedim(-1, 1) if layout == "BLK" else student
    want = F.cross_entropy(channels_first, label, label_smoothing=smoothing)
    torch.testing.assert_close(loss(found, student, label), want)


def test_probabilities_are_labels_too() -> None:
    found = objective("cross-entropy", "BK")
    soft = value("BK", 1).softmax(-1)
    torch.testing.assert_close(loss(found, value("BK"), soft), F.cross_entropy(value("BK"), soft))


def test_labels_on_masked_positions_do_not_count() -> None:
    """House 1.5: `cross_entropy` ignored the mask."""
    student, label = value("BLK"), labels("BLK")
    mask = (value("BL", 3) > 0).float()
    student[mask == 0] = torch.inf
    got = loss(objective("cross-entropy", tap("BLK"), declared("BL")), student, label, mask)
    torch.testing.assert_close(got, F.cross_entropy(student[mask > 0], label[mask > 0]))


@pytest.mark.parametrize("balance", ["effective-number", "inverse"])
def test_class_weights_from_the_counts_of_the_data(balance: str) -> None:
    """vision 2.6: facts of the data (counts of classes) had no reader; an objective got two taps and a dict."""
    counts = [1000, 500, 100, 50, 10, 5]
    context = MatchContext("m", data={"class_counts": counts})
    found = objective("cross-entropy", tap("BK"), declared("B"), context, balance=balance, beta=0.99)
    count_K = torch.tensor(counts, dtype=torch.float64)
    weight_K = 1 / count_K if balance == "inverse" else (1 - 0.99) / (1 - 0.99**count_K)
    weight_K = (weight_K / weight_K.mean()).float()
    want = F.cross_entropy(value("BK"), labels("BK"), weight_K)
    torch.testing.assert_close(loss(found, value("BK"), labels("BK")), want)


@pytest.mark.parametrize("facts", [{}, {"class_counts": [3, 0]}])
def test_weights_without_counts_are_refused_while_planning(facts: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="class_counts"):
        objective("cross-entropy", tap("BK"), declared("B"), MatchContext("m", data=facts), balance="inverse")


def test_hard_labels_weighted_by_the_class_the_teacher_gives() -> None:
    """Vision 2.7: `weight` could not depend on the teacher."""
    counts = [900, 90, 9, 9, 9, 9]
    context = MatchContext("m", data={"class_counts": counts})
    student, teacher = value("BK"), value("BK", 1)
    plain = objective("hard-label", "BK", context=context)
    torch.testing.assert_close(loss(plain, student, teacher), F.cross_entropy(student, teacher.argmax(-1)))
    found = objective("hard-label", "BK", context=context, reweight=True, balance="inverse")
    weight_K = 1 / torch.tensor(counts).float()
    want = F.cross_entropy(student, teacher.argmax(-1), weight_K)
    torch.testing.assert_close(loss(found, student, teacher), want)
    assert found.weighs_target


def test_hard_labels_tell_how_often_they_are_the_given_ones() -> None:
    found = objective("hard-label", "BK")
    student, teacher = value("BK"), value("BK", 1)
    given = teacher.argmax(-1)
    assert found.monitor() == {}
    loss(found, student, teacher)
    assert found.monitor() == {}
    found(student, teacher, batch(), labels=given)
    assert found.monitor() == {"label_agreement": 1}
    given[0] = (given[0] + 1) % student.shape[-1]
    mixed = 0.6 * F.one_hot(given, student.shape[-1]) + 0.4 / student.shape[-1]
    for labels in (given, mixed):
        torch.testing.assert_close(
            found(student, teacher, batch(), labels=labels).sum(), found(student, teacher, batch()).sum()
        )
        assert found.monitor()["label_agreement"] == pytest.approx(1 - 1 / len(given))
    found.monitored = False
    found(student, teacher, batch(), labels=teacher.argmax(-1))
    assert found.monitor()["label_agreement"] < 1


def test_hard_labels_need_no_counts_until_they_are_weighted() -> None:
    found = objective("hard-label", "BK")
    found.options = found.options.model_copy(update={"reweight": True})
    with pytest.raises(PlanError, match="class_counts"):
        found(value("BK"), value("BK", 1), batch())


@pytest.mark.parametrize("name", ["cross-entropy", "hard-label"])
def test_gradients_of_losses_on_labels(name: str) -> None:
    student = value("BLK", dtype=torch.float64).requires_grad_()
    right = labels("BLK") if name == "cross-entropy" else value("BLK", 1, dtype=torch.float64)
    found = objective(name, tap("BLK"), declared("BL") if name == "cross-entropy" else tap("BLK"))
    assert torch.autograd.gradcheck(lambda s: found(s, right, batch()), (student,))


def test_micro_batches_of_labels_add_up() -> None:
    student, label = value("BLK"), labels("BLK")
    label[0, :3] = -100
    found = objective("cross-entropy", tap("BLK"), declared("BL"))
    parts = [
        (found(student[i:j], label[i:j], batch(j - i)), found.weight(batch(j - i), label[i:j]))
        for i, j in ((0, 1), (1, 4))
    ]
    whole = torch.cat([a for a, _ in parts]).sum() / torch.cat([w for _, w in parts]).sum()
    torch.testing.assert_close(whole, loss(found, student, label))


def test_labels_of_a_wrong_layout_are_refused() -> None:
    kind = type(objective("cross-entropy", tap("BLK"), declared("BL")))
    assert "labels of BLK are BL" in (kind.check(tap("BLK"), declared("B")) or "")
    assert kind.check(tap("BCHW"), declared("BHW")) is None
    assert kind.check(tap("BK", K=10), Tap("soft", "data", "BK", {"K": 5})) == "K: 10 != 5"


def test_one_name_has_an_implementation_for_every_layout() -> None:
    registry = get_registry()
    assert registry.get("objective", "kl", "BK").plugin == "core"
    assert registry.get("objective", "kl", "factored-logits").plugin == "decoder"
    assert registry.get("objective", "kl").plugin == "core"
    assert registry.status(registry.get("objective", "kl", "factored-logits")) == ("ok", "")
