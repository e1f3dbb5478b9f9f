"""Distances over dense values of any layout: closed forms, gradients, masks, micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.matching.objectives.dense_values import LAYOUTS, SIZES, batch, loss, objective, tap, value

DISTANCES = ("mse", "l2", "relative-l2", "cosine", "huber", "smooth-l1")
POSITIONS = {"BLD": 1, "BTD": 1, "BCHW": 2, "BLHE": 2, "BCL": 1}
"""Layout -> how many axes of positions it has, in the order of a mask."""


def _rows(x: Tensor, layout: str) -> Tensor:
    """[B, positions, features] by naming axes, written apart from the code under test."""
    axis = layout.index("C") if "C" in layout else len(layout) - 1
    return x.movedim(axis, -1).reshape(x.shape[0], -1, x.shape[axis])


EXPECTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda s, t: (s - t).pow(2).mean(-1),
    "l2": lambda s, t: (s - t).pow(2).sum(-1).sqrt(),
    "relative-l2": lambda s, t: (s - t).pow(2).sum(-1).sqrt() / t.norm(dim=-1).mean(1, keepdim=True),
    "cosine": lambda s, t: 1 - (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1)),
    "huber": lambda s, t: torch.where((s - t).abs() < 1, 0.5 * (s - t) ** 2, (s - t).abs() - 0.5).mean(-1),
    "smooth-l1": lambda s, t: torch.where((s - t).abs() < 1, 0.5 * (s - t) ** 2, (s - t).abs() - 0.5).mean(-1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", DISTANCES)
def test_every_distance_takes_every_dense_layout(name: str, layout: str) -> None:
    """Vision 2.15, house 1.5: `mse` and `l2` took BLD, BLHE and BLKE only."""
    student, teacher = value(layout), value(layout, 1)
    found = objective(name, layout)
    assert type(found).takes(tap(layout), tap(layout))
    want = EXPECTED[name](_rows(student, layout), _rows(teacher, layout)).mean(1)
    torch.testing.assert_close(found(student, teacher, batch()), want, rtol=1e-5, atol=1e-6)
    assert found.weight(batch()).tolist() == [1.0] * 4


def test_closed_forms() -> None:
    student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    layout = {"student": "BK", "teacher": "BK"}

    def of(name: str, **options: Any) -> float:
        return float(objective(name, **layout, **options)(student, teacher, batch(1)))

    assert of("mse") == pytest.approx(6.5)
    assert of("l2") == pytest.approx(13**0.5)
    assert of("relative-l2") == pytest.approx(13**0.5 / 2)
    assert of("cosine") == pytest.approx(0.2)
    assert of("huber", delta=2.5) == pytest.approx((2.5 * (3 - 1.25) + 2.0) / 2)
    assert of("smooth-l1", beta=0.0) == pytest.approx(2.5)
    assert of("mse", normalise="unit") == pytest.approx((0.6**2 + 0.2**2) / 2)
    assert of("mse", normalise="rms") == pytest.approx(2 * (0.6**2 + 0.2**2) / 2)
    assert of("mse", normalise="standard") == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("how", ["rms", "unit", "standard"])
def test_normalised_squares_do_not_see_the_scale(how: str) -> None:
    student, teacher = value("BLD"), value("BLD", 1)
    found = objective("mse", "BLD", normalise=how)
    scaled = student * torch.linspace(0.5, 3.0, SIZES["L"])[None, :, None]
    torch.testing.assert_close(found(scaled, teacher, batch()), found(student, teacher, batch()))


@pytest.mark.parametrize("name", DISTANCES)
def test_a_right_side_of_other_letters(name: str) -> None:
    """Positions are paired in order, features with features: channels first against channels last."""
    student, teacher = value("BCL"), value("BTD", 1)
    got = objective(name, "BCL", "BTD")(student, teacher, batch())
    torch.testing.assert_close(got, objective(name, "BLD")(student.transpose(1, 2), teacher, batch()))


@pytest.mark.parametrize("layout", [*POSITIONS, "BK"])
@pytest.mark.parametrize("name", DISTANCES)
def test_masked_positions_do_not_count(name: str, layout: str) -> None:
    """House 1.5: equal on every valid token, wild on padding, and the loss was 5000 instead of 0."""
    letters = layout[0] + layout[1:].replace("C" if "C" in layout else layout[-1], "")
    for axes in range(1, POSITIONS.get(layout, 0) + 2):
        found = objective(name, layout)
        assert type(found).masks(tap(layout), letters[:axes])
        mask = torch.zeros([SIZES[letter] for letter in letters[:axes]])
        mask[1:3] = 1.0
        mask.view(-1)[-1] = 1.0
        teacher = value(layout, 1)
        counts = mask.reshape(*mask.shape, *[1] * (POSITIONS.get(layout, 0) + 1 - axes))
        whole = counts.expand([SIZES[letter] for letter in letters])
        axis = layout.index("C") if "C" in layout else len(layout) - 1
        inside = whole.unsqueeze(axis).expand_as(teacher)
        student = torch.where(inside > 0, teacher, torch.full_like(teacher, torch.inf))
        assert float(loss(found, student, teacher, mask)) == pytest.approx(0.0, abs=2e-6)
        assert found.weight(batch(), None, mask=mask).tolist() == mask.view(4, -1).sum(1).tolist()
        other = torch.where(inside > 0, teacher + value(layout, 2), teacher)
        assert float(loss(found, other, teacher, mask)) > 0.01


@pytest.mark.parametrize("name", ["mse", "l2", "cosine"])
def test_the_masked_loss_is_a_mean_over_counted_positions(name: str) -> None:
    student, teacher = value("BLD"), value("BLD", 1)
    mask = (value("BL", 3) > 0).float()
    want = EXPECTED[name](student, teacher)[mask > 0].mean()
    torch.testing.assert_close(loss(objective(name, "BLD"), student, teacher, mask), want)


@pytest.mark.parametrize("layout", ["BK", "BLD", "BCHW"])
@pytest.mark.parametrize("name", DISTANCES)
def test_gradients(name: str, layout: str) -> None:
    student = value(layout, dtype=torch.float64).requires_grad_()
    teacher = value(layout, 1, dtype=torch.float64)
    found = objective(name, layout)
    assert torch.autograd.gradcheck(lambda s: found(s, teacher, batch()), (student,))


def test_gradients_of_normalised_squares() -> None:
    student = value("BLD", dtype=torch.float64).requires_grad_()
    teacher = value("BLD", 1, dtype=torch.float64)
    for how in ("rms", "unit", "standard"):
        found = objective("mse", "BLD", normalise=how)
        assert torch.autograd.gradcheck(lambda s, found=found: found(s, teacher, batch()), (student,))


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("masked", [False, True])
def test_micro_batches_give_the_loss_of_the_whole_batch(name: str, masked: bool) -> None:
    student, teacher = value("BLD"), value("BLD", 1)
    mask = (value("BL", 3) > 0).float() if masked else None
    found = objective(name, "BLD")
    assert found.couples == "sample"
    whole = found(student, teacher, batch(), mask=mask)
    pieces = [
        found(student[i:j], teacher[i:j], batch(j - i), mask=None if mask is None else mask[i:j])
        for i, j in ((0, 1), (1, 4))
    ]
    torch.testing.assert_close(torch.cat(pieces), whole)


def test_shapes_that_differ_are_found_before_anything_runs() -> None:
    kind = type(objective("mse", "BLD"))
    assert kind.check(tap("BLD"), tap("BLD", L=5, D=7)) == "D: 6 != 7"
    assert "axes" in (kind.check(tap("BLD"), tap("BK")) or "")
    assert kind.check(tap("BCHW", C=32), tap("BHWD", D=32)) is None
    assert kind.check(tap("BCHW", C=32), tap("BHWD", D=16)) == "C: 32 != 16"
    assert not kind.takes(tap("BLD"), None)
    assert not kind.takes(tap("factored-logits", V=3), tap("BK"))


def test_positions_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="5 positions in 4 samples, the right side 3"):
        objective("mse", "BLD")(value("BLD"), value("BLD")[:, :3], batch())


def test_the_relative_error_is_logged() -> None:
    found = objective("mse", "BLD")
    teacher = value("BLD")
    found(1.5 * teacher, teacher, batch())
    assert found.monitor() == {"relative_error": pytest.approx(0.5)}
    found.monitored = False
    found(3.0 * teacher, teacher, batch())
    assert found.monitor() == {"relative_error": pytest.approx(0.5)}, "the last pass that was monitored"


def test_half_precision_is_computed_in_single() -> None:
    student = torch.full((4, 5, 6), 300.0, dtype=torch.float16)
    got = objective("mse", "BLD")(student, torch.zeros_like(student), batch())
    assert got.dtype == torch.float32
    assert got.tolist() == [90000.0] * 4
