"""What an adaptive module computes, and what its objectives ask of it (E10 to E12 of the specification)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xarch import Batch, MatchContext, Replaceable, Tap
from xarch_acm.labels import stop
from xarch_acm.learners import adaptive
from xarch_acm.module import AdaptiveModule, Point
from xarch_acm.objectives.budget import Budget
from xarch_acm.objectives.entropy import Entropy
from xarch_acm.objectives.prefixes import Prefixes
from xarch_acm.objectives.spread import Spread
from xarch_acm.options import AcmOptions
from xarch_acm.sort import Sorter

BATCH = Batch({"x": torch.zeros(3)}, 3)


class Gated(nn.Module):
    def __init__(self, bias: bool = True, units: int = 30) -> None:
        super().__init__()
        self.up, self.value, self.down = nn.Linear(8, units, bias), nn.Linear(8, units, bias), nn.Linear(units, 6, bias)

    def forward(self, x):
        return self.down(F.silu(self.up(x)) * self.value(x))


def make(
    *, bias: bool = True, residual: bool = True, seed: int = 0, units: int = 30, gates: str = "estimate"
) -> tuple[AdaptiveModule, torch.Tensor, torch.Tensor]:
    """An adaptive module with a random gate, inputs, and what the module it replaces makes of them."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"mlp": Gated(bias, units)})
    x = torch.randn(3, 5, 8)
    wanted = model["mlp"](x).detach()
    part = Replaceable("mlp", "mlp", residual, ("up", "value"), lambda gate, value: F.silu(gate) * value, "down")
    module = adaptive(model, part, AcmOptions(gates=gates, temperature=0.8, gate_share=0.05))
    nn.init.normal_(module.gate.out.weight, std=3.0 if gates == "estimate" else 1.0)
    nn.init.zeros_(module.gate.out.bias)
    return module.eval(), x, wanted


@pytest.mark.parametrize("bias", [True, False])
def test_all_learners_are_the_module_they_replace(bias):
    module, x, wanted = make(bias=bias)
    module.point = Point(fixed=4)
    assert torch.allclose(module(x), wanted, atol=1e-6)
    assert torch.allclose(module.prefixes(x)[..., -1, :], wanted, atol=1e-5)


def test_a_new_gate_leaves_nothing_out():
    torch.manual_seed(0)
    model = nn.ModuleDict({"mlp": Gated()})
    x = torch.randn(3, 5, 8)
    wanted = model["mlp"](x)
    part = Replaceable("mlp", "mlp", True, ("up", "value"), lambda gate, value: F.silu(gate) * value, "down")
    module = adaptive(model, part, AcmOptions()).eval()
    with torch.no_grad():
        assert torch.equal(module(x), wanted)


@pytest.mark.parametrize("gates", ["estimate", "classify"])
@pytest.mark.parametrize("residual", [True, False])
def test_gates_run_the_prefix_that_they_choose(residual, gates):
    """E10: the reference never ran the last chosen learner."""
    module, x, _ = make(residual=residual, gates=gates)
    seen: list[torch.Tensor] = []
    module.watch = lambda logits, choice: seen.append(choice)
    with torch.no_grad():
        made, prefixes = module(x), module.prefixes(x)
    learners = seen[0].argmax(-1) + module.least
    assert len(set(learners.flatten().tolist())) >= 3
    assert {module.learners} <= set(learners.flatten().tolist()) <= set(range(module.least, 5))
    both = torch.cat([module.bare(made)[..., None, :], prefixes], -2)
    expected = both.gather(-2, learners[..., None, None].expand(*made.shape[:-1], 1, made.shape[-1]))[..., 0, :]
    assert torch.allclose(made, expected, atol=1e-5)
    for k in range(module.least, 5):
        module.point, module.watch = Point(fixed=k), None
        assert torch.allclose(module(x), both[..., k, :], atol=1e-5)


def test_what_runs_outside_training_is_what_all_would_give_masked():
    """Positions sorted by their learners, also where none or all of them run."""
    for bias in (True, False):
        module, x, _ = make(bias=bias)
        for shift in (-50.0, -3.0, 0.0, 50.0):
            module.point = Point(shift=shift)
            with torch.no_grad():
                made = module(x)
                count = module.gate.scores(module.gate(x), shift).argmax(-1)
                masked = module.out(module.hidden(x) * (count[..., None] > module.owner_F))
            assert torch.allclose(made, masked, atol=1e-5)


def test_training_computes_what_the_choices_say_and_gradients_reach_the_gate():
    """E11: without straight-through gates only the auxiliary terms trained them."""
    module, x, wanted = make()
    seen: list[torch.Tensor] = []
    module.train()
    module.watch = lambda logits, choice: seen.append(choice)
    torch.manual_seed(3)
    made = module(x)
    learners = seen[0].detach().argmax(-1)
    both = torch.cat([module.bare(made)[..., None, :], module.prefixes(x)], -2)
    expected = both.gather(-2, learners[..., None, None].expand(*made.shape[:-1], 1, made.shape[-1]))[..., 0, :]
    assert torch.allclose(made, expected, atol=1e-5)
    (made - wanted).square().mean().backward()
    assert float(module.gate.into.weight.grad.norm()) > 1e-6
    assert float(module.into[0].weight.grad.norm()) > 1e-6
    module.task_gradient = False
    seen.pop()
    module.zero_grad()
    module(x).sum().backward()
    assert module.gate.into.weight.grad is None, "as in the reference"
    torch.manual_seed(4)
    module(x)
    assert not torch.equal(seen[0].argmax(-1), seen[1].argmax(-1)), "gates are sampled in train mode"


def test_a_shift_runs_more_learners_and_never_fewer():
    module, x, _ = make()
    counts = []
    for shift in (-50.0, -1.0, 0.0, 1.0, 50.0):
        seen: list[torch.Tensor] = []
        module.point, module.watch = Point(shift=shift), lambda logits, choice, seen=seen: seen.append(choice)
        with torch.no_grad():
            module(x)
        counts.append(seen[0].argmax(-1))
    assert all(bool((a <= b).all()) for a, b in pairwise(counts))
    assert counts[0].max() == 0
    assert counts[-1].min() == 4


def test_labels_stop_where_a_learner_helps_too_little():
    distances = torch.tensor([[4.0, 2.0, 1.9, 0.5, 0.0], [4.0, 2.0, 1.0, 0.5, 0.2]])
    assert stop(distances, 0.9, 0).tolist() == [2, 4]
    assert stop(distances, 0.9, -1).tolist() == [1, 4]
    # The first learner may help too little already; the reference took such a label for all learners.
    assert stop(torch.tensor([[4.0, 4.0, 1.0]]), 0.9, 0).tolist() == [1]
    assert stop(torch.tensor([[4.0, 4.0, 1.0]]), 0.9, -1).tolist() == [0]


def choices(*learners: list[int]) -> torch.Tensor:
    return F.one_hot(torch.tensor(learners), 5).float()


def joined(kind, **options):
    info = {"least": 0, "learners": 4, "budget": 0.5, "gate": 0.0}
    costs = {"a": 10.0, "b": 30.0}
    taps = {name: Tap(name, "logits", "BLK", {"K": 5}, info | {"cost": cost}) for name, cost in costs.items()}
    return kind(taps, None, kind.Options(**options), MatchContext())


def test_the_budget_is_a_share_of_the_cost_of_all_gates():
    budget = joined(Budget)
    half = {"a": choices([4, 4], [4, 4], [4, 4]), "b": choices([2, 2], [1, 1], [1, 1])}
    # (4·10 + 2·30)/160, (4·10 + 30)/160 twice.
    assert float(budget(half, None, BATCH).mean()) == pytest.approx(abs((100 + 70 + 70) / 480 - 0.5))
    exact = {"a": choices([2, 2], [0, 4], [1, 3]), "b": choices([2, 2], [4, 0], [2, 2])}
    assert float(budget(exact, None, BATCH).mean()) == pytest.approx(0.0, abs=1e-7)
    assert float(joined(Budget, budget=0.25)(exact, None, BATCH).mean()) == pytest.approx(0.25)
    assert budget.couples == "batch"


def test_masked_positions_cost_nothing():
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    wasted = {"a": choices([2, 4], [2, 4], [2, 0]), "b": choices([2, 4], [2, 4], [2, 0])}
    assert float(joined(Budget)(wasted, None, BATCH, mask=mask).mean()) == pytest.approx(0.0, abs=1e-7)


def test_spread_falls_when_samples_cost_more_differently():
    spread = joined(Spread)
    same = {name: choices([2, 2], [2, 2], [2, 2]) for name in "ab"}
    some = {name: choices([2, 2], [1, 2], [3, 2]) for name in "ab"}
    far = {name: choices([2, 2], [0, 0], [4, 4]) for name in "ab"}
    values = [float(spread(v, None, BATCH).mean()) for v in (same, some, far)]
    assert values[0] == 0
    assert values[0] > values[1] > values[2]


def test_entropy_is_least_for_even_choices():
    entropy = joined(Entropy)
    one, even = choices(*[[3] * 5] * 3), choices(*[[0, 1, 2, 3, 4]] * 3)
    assert entropy({"a": one, "b": one}, None, BATCH).tolist() == [0.0] * 3
    assert float(entropy({"a": even, "b": even}, None, BATCH).mean()) == pytest.approx(-1.0)
    gradient = torch.full((3, 5, 5), 0.2, requires_grad=True)
    entropy({"a": gradient, "b": gradient}, None, BATCH).sum().backward()
    assert bool(torch.isfinite(gradient.grad).all())


def fitted(module: AdaptiveModule, x: torch.Tensor, wanted: torch.Tensor, steps: int) -> list[float]:
    """Squared errors of all prefixes, relative to the output, after some steps of the first stage."""
    taps = Tap("p", "hidden", "BLND", {"N": 4, "D": 6}), Tap("o", "hidden", "BLD", {"D": 6})
    objective = Prefixes(*taps, Prefixes.Options(), MatchContext())
    optimiser = torch.optim.Adam([p for n, p in module.named_parameters() if not n.startswith("gate")], 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(module.prefixes(x), wanted, BATCH).sum().backward()
        optimiser.step()
    objective(module.prefixes(x), wanted, BATCH)
    return [objective.monitor()[f"error.{n}"] for n in range(1, 5)]


def test_sorted_learners_start_better_than_random_ones():
    """E12: every further learner helps, and random learners are twice as bad after as many steps."""
    module, _, _ = make(units=64)
    with torch.no_grad():
        # As in trained models, some units matter more than others.
        module.out.weight.mul_(torch.logspace(0.3, -1.5, 64)[torch.randperm(64)])
    x = torch.randn(3, 200, 8)
    with torch.no_grad():
        wanted = module.out(module.hidden(x))
    sorter = Sorter(module, "mlp")
    sorter.observe({"mlp.in": x, "mlp.out": wanted}, BATCH)
    figures = sorter.solve()
    with torch.no_grad():
        assert torch.allclose(module.out(module.hidden(x)), wanted, atol=1e-5), "sorting changes nothing"
    assert figures["first_learner"] > 0.5
    assert figures["error"] == pytest.approx(0.0, abs=1e-10)
    own = fitted(module, x, wanted, 60)
    assert all(a > b for a, b in pairwise(own))
    other, _, _ = make(units=64, seed=1)
    random = fitted(other, x, wanted, 60)
    assert all(a <= 0.5 * b for a, b in zip(own, random, strict=True))


def test_a_projection_is_two_layers_of_the_same_cost():
    model = nn.ModuleDict({"o": nn.Linear(24, 8)})
    module = adaptive(model, Replaceable("o", "o"), AcmOptions(modules=["o"]))
    assert (module.units, module.least, len(module.into)) == (6, 1, 1)
    assert module.cost * module.learners == 6 * (24 + 8)
    assert module.out.bias is not None
    assert math.isclose(module.gate_cost, 24 * 2 + 2 * 4)
