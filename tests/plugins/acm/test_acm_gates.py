"""What gates learn: how much the answer depends on a part, and what it loses without some learners."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.plugins.acm.acm_models import tiny_vit, with_random_gates
from xarch import Batch, MatchContext, Replaceable, Tap, TapModel
from xarch.testing.models import load_teacher
from xarch_acm.exits import least_for
from xarch_acm.experts import ExpertModule, Grouper
from xarch_acm.gate import Gate
from xarch_acm.labels import lost
from xarch_acm.learners import adaptive
from xarch_acm.module import Point
from xarch_acm.objectives.estimates import Estimates
from xarch_acm.options import AcmOptions
from xarch_acm.sensitivity import sensitivities
from xarch_acm.target import AcmTarget
from xarch_image.testing import image_batch


def test_sensitivity_tells_what_an_error_does_to_the_answer(tmp_path: Path) -> None:
    """Errors in random directions change the divergence by half of it times their square over the width."""
    viewed = AcmTarget().view(load_teacher(tiny_vit(tmp_path)))
    batch = image_batch(viewed.facts, 4)
    path, last = "blocks.0.mlp", "blocks.1.mlp"
    found = viewed.collect(batch, {f"{path}.sensitivity", f"{last}.sensitivity", f"{path}.out"})
    sensitivity = found[f"{path}.sensitivity"]
    assert sensitivity.shape == (4, 17)
    assert bool((sensitivity > 0).all())
    assert float(found[f"{last}.sensitivity"][:, 1:].max()) == 0, "the answer reads only the first token"
    alone = sensitivities(viewed.model, batch.narrow(0, 1), {path})
    assert torch.allclose(alone[path], sensitivity[:1], rtol=1e-4), "depends on the other samples"
    width, step = found[f"{path}.out"].shape[-1], 3e-2
    with torch.no_grad():
        wanted = viewed.model.collect(batch, {"logits"})["logits"].log_softmax(-1)
        rises = torch.zeros(4)
        for seed in range(60):
            error = torch.randn(4, 17, width, generator=torch.Generator().manual_seed(seed))
            error = step * error / error.norm(dim=-1, keepdim=True)
            handle = viewed.model.module.get_submodule(path).register_forward_hook(lambda m, x, y, e=error: y + e)
            answer = viewed.model.collect(batch, {"logits"})["logits"].log_softmax(-1)
            handle.remove()
            rises += (wanted.exp() * (wanted - answer)).sum(-1) / 60
    expected = step**2 * sensitivity.sum(1) / (2 * width)
    # One direction of the answer stands for all of its few classes.
    assert 0.3 < float(rises.sum() / expected.sum()) < 3


def test_estimates_are_least_at_the_mean_of_what_is_lost() -> None:
    tap = Tap("gate", "logits", "BLK", {"K": 2})
    objective = Estimates(tap, tap, Estimates.Options(), MatchContext())
    losses = torch.tensor([[[0.0, 8.0], [2.0, 0.0], [4.0, 1.0]]])
    guess = losses.mean(1, keepdim=True).log().expand(1, 3, 2).clone().requires_grad_()
    objective(guess, losses, Batch({"x": torch.zeros(1)}, 1)).sum().backward()
    assert torch.allclose(guess.grad.sum(1), torch.zeros(1, 2), atol=1e-6)
    exact = objective(losses.clamp_min(1e-9).log(), losses, Batch({"x": torch.zeros(1)}, 1))
    assert float(exact) == pytest.approx(0.0, abs=1e-6)


def test_estimates_fall_with_every_learner_and_the_cheapest_runs() -> None:
    gate = Gate(8, 4, 5, estimates=True)
    nn.init.normal_(gate.out.weight, std=3.0)
    made = gate(torch.randn(50, 8))
    assert bool((made.diff(dim=-1) <= 1e-5).all())
    gate.price = 2.0
    choice = gate.scores(made, 0.5).argmax(-1)
    cost = made.exp() + 2.0 * torch.exp(torch.tensor(-0.5)) * torch.arange(5)
    assert torch.equal(choice, cost.argmin(-1))
    each = torch.tensor([[9.0, 4.0, 2.0, 1.0, 0.5], [90.0, 40.0, 20.0, 10.0, 5.0]])
    gate.centre(each[:1])
    nn.init.zeros_(gate.out.weight)
    assert gate(torch.randn(1, 8)).exp()[0].tolist() == pytest.approx(each[0].tolist(), rel=1e-4)
    placed = Gate(8, 4, 5, estimates=True, positions=2)
    placed.centre(each.repeat(3, 1))
    assert torch.allclose(placed(torch.randn(4, 2, 8)).exp(), each.expand(4, 2, 5), rtol=1e-4)


def test_a_position_that_hardly_matters_loses_hardly_anything() -> None:
    found = lost(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([4.0, 0.01]), 2.0)
    assert torch.allclose(found, torch.tensor([[8.0, 2.0], [0.02, 0.005]]))


def test_a_router_runs_the_experts_that_it_expects_to_be_most_active() -> None:
    torch.manual_seed(0)
    mlp = nn.ModuleDict({"fc1": nn.Linear(6, 16), "fc2": nn.Linear(16, 6)})
    part = Replaceable("mlp", "mlp", True, ("fc1",), nn.functional.gelu, "fc2")
    model = nn.ModuleDict({"mlp": mlp})
    # Two kinds of units, interleaved.
    mlp["fc1"].weight.data[::2] = torch.eye(6)[0] + 0.01 * torch.randn(8, 6)
    mlp["fc1"].weight.data[1::2] = torch.eye(6)[1] + 0.01 * torch.randn(8, 6)
    module = adaptive(model, part, AcmOptions(gates="experts", learners=2))
    assert isinstance(module, ExpertModule)
    x = torch.randn(5, 7, 6)
    whole = module.out(module.hidden(x))
    assert Grouper(module, "mlp").solve()["cosine"] > 0.99
    assert torch.allclose(module.out(module.hidden(x)), whole, atol=1e-6), "sorting changes nothing"
    first = module.layers[0].weight[:8, :2].argmax(-1)
    assert first.unique().numel() == 1, "units that are alike are one expert"
    module.point = Point(fixed=2)
    assert torch.allclose(module(x), whole, atol=1e-6)
    module.point = Point(fixed=1)
    best = module.gate(x).argmax(-1)
    hidden = module.hidden(x) * (module.owner_F == best[..., None])
    assert torch.allclose(module(x), module.out(hidden), atol=1e-6)
    assert float(module.activity(x).detach().amax(-1).min()) == pytest.approx(1.0)


def test_samples_that_are_sure_leave_early_and_answer_as_if_the_rest_were_not_there(tmp_path: Path) -> None:
    student = with_random_gates(tmp_path, gates="exits", modules=["mlp", "qkv", "o"], budgets=[0.5, 0.75])
    assert student.exits is not None
    assert student.exits.shares().tolist() == [0.5, 1.0]
    batch = image_batch(student.facts, 6)

    def answer(model: TapModel) -> torch.Tensor:
        with torch.no_grad():
            return model.collect(batch, {"logits"})["logits"]

    whole = answer(student)
    assert student.spent() == {"executed": 1.0, "deviation": 0.0, "spread": 0.0}
    with torch.no_grad():
        sure = student.sure(batch)
    assert sure.shape == (6, 1)
    # As many leave at the first of two exits as bring the mean to three quarters.
    least = least_for(sure, student.exits.shares(), 0.75)
    tables = [{"budget": b, "shift": least, "fixed": student.fixed[b]} for b in (0.5, 0.75)]
    student.decide({"tables": tables})
    point, early = student.variants()["exit-75"], sure[:, 0] >= least
    found = answer(point)
    assert int(early.sum()) == 3
    assert torch.allclose(found[~early], whole[~early], atol=1e-5)
    blocks = student.module.blocks
    student.module.blocks = nn.Sequential(blocks[0])
    assert torch.allclose(found[early], answer(student)[early], atol=1e-5)
    student.module.blocks = blocks
    assert point.spent() == pytest.approx({"executed": 0.75, "deviation": 0.25, "spread": 0.25})


def test_chance_trains_every_exit(tmp_path: Path) -> None:
    student = with_random_gates(tmp_path, gates="exits", modules=["mlp", "qkv", "o"])
    student.module.train().requires_grad_(True)
    torch.manual_seed(0)
    student.collect(image_batch(student.facts, 8), {"logits"})["logits"].sum().backward()
    first, *_, last = student.adaptive.values()
    assert 0 < int(last.running.sum()) < int(first.running.sum()) == 8
    assert float(last.out.weight.grad.norm()) > 0
    assert not any(".gate." in name for name in student.param_groups()["all"])
