"""Correlation (couples the samples of a batch, if asked to) and the flow between two taps (joined)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.matching.objectives.dense_values import batch, loss, objective, tap, value
from xarch import MatchContext, PlanError


def test_correlation_over_features_against_numpy() -> None:
    student, teacher = value("BK"), value("BK", 1)
    got = objective("correlation", "BK")(student, teacher, batch())
    want = [1 - np.corrcoef(s, t)[0, 1] for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5)


def test_correlation_over_the_batch_against_numpy() -> None:
    student, teacher = value("BK"), value("BK", 1)
    found = objective("correlation", "BK", across="batch", temperature=2.0)
    s, t = ((x / 2).softmax(-1).numpy() for x in (student, teacher))
    want = np.mean([1 - np.corrcoef(s[:, k], t[:, k])[0, 1] for k in range(6)])
    assert float(loss(found, student, teacher)) == pytest.approx(want, rel=1e-4)


def test_it_says_whether_it_couples_and_a_part_of_the_batch_shows_why() -> None:
    """Vision 2.2, encdec W1: the property has to be true of the instance."""
    student, teacher = value("BK"), value("BK", 1)
    alone, together = objective("correlation", "BK"), objective("correlation", "BK", across="batch")
    assert (alone.couples, together.couples) == ("sample", "batch")
    torch.testing.assert_close(alone(student[:2], teacher[:2], batch(2)), alone(student, teacher, batch())[:2])
    part = together(student[:3], teacher[:3], batch(3))
    assert not torch.allclose(part, together(student, teacher, batch())[:3])


def test_scale_and_offset_do_not_matter() -> None:
    teacher = value("BLD")
    for across in ("features", "batch"):
        found = objective("correlation", "BLD", across=across)
        assert float(loss(found, 3 * teacher + 2, teacher)) == pytest.approx(0.0, abs=1e-5)
        assert float(loss(found, -teacher, teacher)) == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("across", ["features", "batch"])
def test_masked_positions_are_left_out_of_correlations(across: str) -> None:
    teacher, mask = value("BLD"), (value("BL", 3) > 0).float()
    student = torch.where(mask[..., None] > 0, teacher, value("BLD", 7))
    assert float(loss(objective("correlation", "BLD", across=across), student, teacher, mask)) == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.parametrize("across", ["features", "batch"])
def test_gradients_of_correlations(across: str) -> None:
    student, teacher = value("BLD", dtype=torch.float64).requires_grad_(), value("BLD", 1, dtype=torch.float64)
    found = objective("correlation", "BLD", across=across)
    assert torch.autograd.gradcheck(lambda s: found(s, teacher, batch()), (student,))


def flow(**right: int):  # type: ignore[no-untyped-def]
    student = {"a": tap("BCHW", "a", C=2), "b": tap("BCHW", "b", C=3)}
    teacher = {"x": tap("BCHW", "x", C=2), "y": tap("BCHW", "y", C=3, **right)}
    return objective("fsp", student, teacher)


def pictures(seed: int, channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(4, channels, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_flow_between_two_taps() -> None:
    student = {"a": pictures(0, 2), "b": pictures(1, 3)}
    teacher = {"x": pictures(2, 2), "y": pictures(3, 3)}
    found = flow()
    g = torch.einsum("bchw,bdhw->bcd", student["a"], student["b"]) / 6
    h = torch.einsum("bchw,bdhw->bcd", teacher["x"], teacher["y"]) / 6
    torch.testing.assert_close(found(student, teacher, batch()), (g - h).square().mean((1, 2)))
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0])
    got = loss(found, student, teacher, mask)
    torch.testing.assert_close(got, (g - h)[mask > 0].square().mean())


def test_gradients_of_the_flow() -> None:
    a, b = pictures(0, 2, torch.float64).requires_grad_(), pictures(1, 3, torch.float64).requires_grad_()
    teacher = {"x": pictures(2, 2, torch.float64), "y": pictures(3, 3, torch.float64)}
    found = flow()
    assert torch.autograd.gradcheck(lambda a, b: found({"a": a, "b": b}, teacher, batch()), (a, b))


def test_a_flow_wants_two_taps_of_equal_widths_on_either_side() -> None:
    with pytest.raises(PlanError, match="3 features"):
        objective(
            "fsp",
            {"a": tap("BK", "a", K=2), "b": tap("BK", "b", K=3)},
            {"x": tap("BK", "x", K=2), "y": tap("BK", "y", K=4)},
        )
    with pytest.raises(PlanError, match="two or more"):
        objective("fsp", {"a": tap("BK")}, {"x": tap("BK")}, MatchContext("m"))


def test_places_of_different_sizes_are_named() -> None:
    student = {"a": pictures(0, 2), "b": pictures(1, 3)[..., :1]}
    with pytest.raises(ValueError, match="6 and 2"):
        flow()(student, student, batch())
