"""Closed-form fits: they find what is there to find and never end above their start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.plugins.mohawk.mohawk_models import make_student, make_teacher, shake, tiny_facts, tokens
from xarch import Batch
from xarch_decoder.model.decoder import make_sequence
from xarch_mohawk.halflife import HALF_LIVES, HalfLifeFit, decay_bias
from xarch_mohawk.ridge import RidgeFit
from xarch_mohawk.solver import MixerSolver, SolverOptions
from xarch_mohawk.student import RecurrentStudent
from xarch_mohawk.target import DM2Target


def _fit(student: RecurrentStudent, teacher, layer: int, batches: list[Batch], **options: object) -> dict[str, float]:
    solver = DM2Target().solver(student, f"blocks.{layer}", options)
    for batch in batches:
        solver.observe(teacher.collect(batch, solver.inputs), batch)
    return solver.solve()


def test_half_life_of_a_bias():
    for half_life in (0.5, 1.0, 37.0, 1024.0):
        a = torch.exp(-torch.nn.functional.softplus(torch.tensor(decay_bias(half_life), dtype=torch.float64)))
        assert math.isclose(a.item() ** half_life, 0.5, rel_tol=1e-9)
    assert math.isfinite(decay_bias(math.inf))


def test_heads_made_by_a_mixer_are_found_again():
    """Head outputs of a mixer with known half-lives, scales (of either sign) and skips."""
    mixer = make_student(make_teacher(tiny_facts())).mixer(0)
    half_life = torch.tensor([1.0, 4.0, 64.0, math.inf])
    scale, skip = torch.tensor([0.7, -0.2, 0.05, 0.01]), torch.tensor([0.3, 1.0, -0.5, 0.0])
    mixer.alpha_bias.copy_(torch.tensor([decay_bias(h) for h in half_life.tolist()]))
    mixer.gain.copy_(scale)
    mixer.D.copy_(skip)
    x = torch.randn(2, 200, 32, generator=torch.Generator().manual_seed(0))
    batch = tokens(tiny_facts(), 2, 200, documents=True)
    sequence = make_sequence(batch["input_ids"], batch["segment_ids"])
    heads = mixer.inner(x, sequence, {"heads"})["heads"]
    mixer.alpha_bias.fill_(decay_bias(16.0))
    mixer.gain.fill_(5.0)
    fit = HalfLifeFit(mixer, HALF_LIVES)
    fit.observe(x[:1], heads[:1], make_sequence(batch["input_ids"][:1], batch["segment_ids"][:1]))
    fit.observe(x[1:], heads[1:], make_sequence(batch["input_ids"][1:], batch["segment_ids"][1:]))
    found = fit.best()
    assert found.half_life_H.tolist() == half_life.tolist()
    assert torch.allclose(found.scale_H.float(), scale, rtol=1e-3)
    assert torch.allclose(found.skip_H.float(), skip, atol=1e-3)
    fit.solve()
    assert torch.allclose(mixer.inner(x, sequence, {"heads"})["heads"], heads, atol=1e-3)


def test_ridge_is_the_minimum_and_adds_up_over_batches():
    torch.manual_seed(0)
    linear, g, t = nn.Linear(5, 3), torch.randn(40, 5), torch.randn(40, 3)
    start, strength = linear.weight.detach().clone(), 0.1
    fit = RidgeFit(linear, strength)
    with torch.no_grad():
        fit.observe(g[:13], t[:13])
        fit.observe(g[13:], t[13:])
        fit.solve()
    weight = linear.weight.detach().double().requires_grad_(True)
    gram = g.double().T @ g.double()
    loss = (g.double() @ weight.T + linear.bias.detach().double() - t.double()).square().sum()
    loss = loss + strength * gram.diagonal().mean() * (weight - start.double()).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-4 * gram.diagonal().mean()


@pytest.mark.parametrize("options", [{}, {"rope": False}, {"state_size": 6}, {"state_size": 12}])
@pytest.mark.parametrize("documents", [False, True])
def test_init_brings_the_mixer_near_the_attention(options, documents):
    teacher = make_teacher(tiny_facts())
    student = make_student(teacher, **options)
    batch = tokens(teacher.facts, 16, 64, documents=documents)
    with torch.no_grad():
        scaled = _fit(make_student(teacher, **options), teacher, 1, [batch], fit="scale")
        figures = _fit(student, teacher, 1, [batch])
    assert figures["relative_error_before"] == scaled["relative_error_before"]
    assert scaled["relative_error"] < 0.95 < figures["relative_error_before"]
    assert figures["relative_error"] < 0.95
    assert figures["median_half_life"] in HALF_LIVES


def test_several_batches_are_one():
    teacher = make_teacher(tiny_facts())
    batch = tokens(teacher.facts, 9, 48)
    ends = [(0, 1), (1, 2), (2, 5), (5, 9)]
    for fit in ("init", "refit"):
        ways = []
        for batches in ([batch], [batch.narrow(a, b) for a, b in ends]):
            student = make_student(teacher)
            # Held-out samples differ between the two ways, so nothing is held out here.
            pieces = [one.narrow(i, i + 1) for one in batches for i in range(len(one))]
            with torch.no_grad():
                _fit(student, teacher, 1, pieces, fit=fit)
            ways.append(student.mixer(1).state_dict())
        assert all(torch.allclose(ways[0][name], ways[1][name], atol=1e-5) for name in ways[0])


def test_refit_lowers_the_error_and_moves_the_projection_alone():
    teacher = make_teacher(tiny_facts())
    student = make_student(teacher)
    shake(student)
    before = {name: t.clone() for name, t in student.module.state_dict().items()}
    with torch.no_grad():
        figures = _fit(student, teacher, 2, [tokens(teacher.facts, 16, 64, seed=s) for s in (1, 2)], fit="refit")
    assert figures["relative_error"] < 0.9 * figures["relative_error_before"]
    changed = {name for name, t in student.module.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"blocks.2.mixers.dm2.out_proj.weight"}


def test_figures_come_from_samples_that_were_not_fitted():
    """More projection weights than tokens: a fit measured on its own tokens would look perfect."""
    teacher = make_teacher(tiny_facts())
    batch = tokens(teacher.facts, 9, 4)
    with torch.no_grad():
        student = make_student(teacher)
        held_out = _fit(student, teacher, 1, [batch], fit="refit", ridge=1e-6)["relative_error"]
        student = make_student(teacher)
        alone = [batch.narrow(i, i + 1) for i in range(8)]
        fitted = _fit(student, teacher, 1, alone, fit="refit", ridge=1e-6)["relative_error"]
    assert fitted < 0.8 * held_out


def test_solver_asks_for_what_it_uses():
    student = make_student(make_teacher(tiny_facts()))
    target = DM2Target()
    assert set(target.solver(student, "blocks.0", {}).inputs) == {
        "blocks.0.mixer_in",
        "blocks.0.mixer_out",
        "blocks.0.heads",
    }
    refit = target.solver(student, "blocks.0", {"fit": "refit"})
    assert isinstance(refit, MixerSolver)
    assert set(refit.inputs) == {"blocks.0.mixer_in", "blocks.0.mixer_out"}


def test_an_infinite_half_life_is_a_candidate_and_no_half_life_is_not() -> None:
    assert SolverOptions().half_lives == list(HALF_LIVES)
    assert math.inf in HALF_LIVES
    for wrong in (math.nan, 0.0, -1.0):
        with pytest.raises(ValueError, match="half_lives"):
            SolverOptions(half_lives=[wrong])
