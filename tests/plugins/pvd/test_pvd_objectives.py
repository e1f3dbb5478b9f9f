"""Distances between fields."""

from __future__ import annotations

import torch

from xarch import Batch, MatchContext, Objective, Tap
from xarch_pvd.objectives import FieldMSE, LogDensity, one_sided


def made(kind: type[Objective], tap: Tap, **options: float) -> Objective:
    return kind(tap, tap, kind.Options.model_validate(options), MatchContext("m"))


def test_a_student_below_a_solid_teacher_is_pulled_up() -> None:
    student = torch.tensor([-6.0, -6.0, 9.0, 9.0, 0.5], requires_grad=True)
    teacher = torch.tensor([3.0, -2.0, 7.5, 3.0, -4.0])
    residual = one_sided(student, teacher, -2.0, 7.0)
    assert residual.tolist() == [-9.0, 0.0, 0.0, 6.0, 2.5]
    residual.square().sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [-18.0, 0.0, 0.0, 12.0, 5.0]


def test_log_density_is_a_mean_over_the_samples_of_a_ray() -> None:
    tap = Tap("samples.sigma_raw", "ray", "RK", {"K": 4})
    loss = made(LogDensity, tap)(torch.ones(2, 4), torch.zeros(2, 4), Batch({}, 2))
    assert loss.tolist() == [1.0, 1.0]


def test_the_colour_of_empty_points_hardly_counts() -> None:
    tap = Tap("points.rgb", "point", "NC", {"C": 3})
    objective = made(FieldMSE, tap, floor=0.02)
    loss = objective(torch.ones(2, 3), torch.zeros(2, 3), Batch({}, 2), opacity=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(loss, torch.tensor([0.02, 1.02]))


def test_samples_count_by_their_weight() -> None:
    tap = Tap("samples.rgb", "ray", "RKC", {"K": 2, "C": 3})
    student = torch.tensor([[[1.0] * 3, [2.0] * 3]])
    weight = torch.tensor([[1.0, 0.0]])
    loss = made(FieldMSE, tap, floor=0.0)(student, torch.zeros(1, 2, 3), Batch({}, 1), weight=weight)
    torch.testing.assert_close(loss, torch.tensor([1.0]))


def test_an_edited_teacher_is_emptier_where_it_is_empty() -> None:
    from xarch_field.facts import FieldFacts

    box = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
    student, values = torch.full((1,), -2.5), torch.full((1,), -100.0)
    losses = []
    for edits in ((), ("erase",)):
        tap = FieldFacts("vm", box, edits=edits).taps()["points.sigma_raw"]
        losses.append(float(made(LogDensity, tap)(student, values, Batch({}, 1))))
        assert float(made(LogDensity, tap, low=-3)(student, values, Batch({}, 1))) == 0.25
    assert losses == [0.0, 2.25]


def test_masked_points_do_not_count() -> None:
    tap = Tap("points.sigma_raw", "point", "N")
    objective, mask = made(LogDensity, tap), torch.tensor([1.0, 0.0])
    loss = objective(torch.ones(2), torch.zeros(2), Batch({"x": mask}, 2), mask=mask)
    assert loss.tolist() == [1.0, 0.0]
    assert objective.weight(Batch({"x": mask}, 2), mask=mask).tolist() == [1.0, 0.0]


def test_the_general_square_is_that_of_fields_where_nothing_weighs() -> None:
    from xarch.matching.objectives.distances import MSE

    tap = Tap("rays.rgb", "ray", "RC", {"C": 3})
    student, teacher = torch.rand(5, 3), torch.rand(5, 3)
    batch = Batch({"x": student}, 5)
    assert torch.equal(made(MSE, tap)(student, teacher, batch), made(FieldMSE, tap)(student, teacher, batch))


def test_gradients_of_losses_of_fields() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, batch = torch.rand(3, 8, generator=generator, dtype=torch.float64), Batch({"x": torch.zeros(3)}, 3)
    for kind, tap, shape in (
        (LogDensity, Tap("samples.sigma_raw", "ray", "RK", {"K": 8}), (3, 8)),
        (FieldMSE, Tap("samples.rgb", "ray", "RKC", {"K": 8, "C": 3}), (3, 8, 3)),
    ):
        objective = made(kind, tap, keep=0.3, uniform=0.2)
        student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        assert torch.autograd.gradcheck(
            lambda s, o=objective, t=teacher: o(s, t, batch, weight=weight), (student.requires_grad_(),)
        )
