"""Registered optimisers and the wrapper, against torch, timm and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from xarch import OptimiserKind
from xarch.optim import Lamb
from xarch.optim.sam import SAM, SAMOptions
from xarch.registry.loader import get_registry


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(name: str, weights: list[nn.Parameter], lr: float = 0.01, decay: float = 0.0, **options: Any) -> Any:
    kind: OptimiserKind = get_registry().create("optimiser", name)
    group = {"params": weights, "multiple": 1.0, "weight_decay": decay}
    return kind.build([group], lr, kind.Options.model_validate(options), fused=False)


def moved(make: Callable[[list[nn.Parameter]], Any], steps: int = 5) -> tuple[Any, list[Tensor]]:
    weights = [nn.Parameter(random(20, 17)), nn.Parameter(random(17, seed=1))]
    optimiser = make(weights)
    for step in range(steps):
        for i, weight in enumerate(weights):
            weight.grad = random(*weight.shape, seed=10 * step + i + 2)
        optimiser.step()
    return optimiser, [w.detach() for w in weights]


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        (
            "adamw",
            {"betas": [0.9, 0.99], "eps": 1e-15},
            lambda ws: torch.optim.AdamW(ws, lr=0.01, betas=(0.9, 0.99), eps=1e-15, weight_decay=0.1),
        ),
        ("adamw", {}, lambda ws: torch.optim.AdamW(ws, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)),
        ("sgd", {}, lambda ws: torch.optim.SGD(ws, lr=0.01, momentum=0.9, weight_decay=0.1)),
        (
            "sgd",
            {"momentum": 0.8, "nesterov": True},
            lambda ws: torch.optim.SGD(ws, lr=0.01, momentum=0.8, nesterov=True, weight_decay=0.1),
        ),
    ],
)
def test_the_same_as_torch(name: str, options: dict[str, Any], theirs: Any) -> None:
    _, mine = moved(lambda ws: built(name, ws, decay=0.1, **options))
    _, want = moved(theirs)
    for a, b in zip(mine, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_is_that_of_timm(decay: float) -> None:
    timm = pytest.importorskip("timm.optim.lamb")
    _, mine = moved(lambda ws: built("lamb", ws, decay=decay))
    _, want = moved(lambda ws: timm.Lamb(ws, lr=0.01, weight_decay=decay, max_grad_norm=None))
    for a, b in zip(mine, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_first_step_of_lamb_has_the_size_of_the_weight() -> None:
    weight = nn.Parameter(10 * random(20, 17))
    before = weight.detach().clone()
    weight.grad = 1e-3 * random(20, 17, seed=1)
    Lamb([weight], lr=0.01, weight_decay=0.01).step()
    assert float((weight.detach() - before).norm() / before.norm()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "muon"])
def test_moments_are_counted_as_they_are_kept(name: str) -> None:
    weights = [nn.Parameter(random(20, 17))]
    optimiser = built(name, weights)
    weights[0].grad = random(20, 17, seed=1)
    optimiser.step()
    kept = [v for v in optimiser.state[weights[0]].values() if v.numel() > 1]
    kind: OptimiserKind = get_registry().create("optimiser", name)
    assert sum(v.numel() for v in kept) == kind.moments() * weights[0].numel()
    assert all(isinstance(v, Tensor) for v in optimiser.state[weights[0]].values())


def test_muon_says_what_the_rest_is_trained_with() -> None:
    kind: OptimiserKind = get_registry().create("optimiser", "muon")
    options = kind.Options.model_validate({"momentum": 0.9, "betas": [0.9, 0.99], "eps": 1e-15})
    assert kind.takes(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16))) == {"0.weight"}
    rest: OptimiserKind = get_registry().create("optimiser", kind.rest)
    assert rest.Options.model_validate(kind.rest_options(options)).betas == (0.9, 0.99)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "options"),
    [("adamw", {"momentum": 0.9}), ("adamw", {"betas": [0.9, 1.0]}), ("sgd", {"momentum": 0.0, "nesterov": True})],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        built(name, [], **options)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_aware_steps_look_uphill_and_come_back_to_the_bit(adaptive: bool) -> None:
    weights = [nn.Parameter(random(5, 3)), nn.Parameter(random(3, seed=1))]
    frozen = nn.Parameter(random(2))
    grads = [random(5, 3, seed=2), random(3, seed=3)]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    before = [w.detach().clone() for w in weights]
    sam, options = SAM(), SAMOptions(rho=0.1, adaptive=adaptive)
    state = sam.perturb([*weights, frozen], options)
    scales = [w.abs() if adaptive else torch.ones_like(w) for w in before]
    norm = sum((g * a).square().sum() for g, a in zip(grads, scales, strict=True)).sqrt()  # type: ignore[union-attr]
    for weight, old, grad, scale in zip(weights, before, grads, scales, strict=True):
        torch.testing.assert_close(weight.detach() - old, 0.1 * scale.square() * grad / norm, rtol=1e-4, atol=1e-6)
    sam.restore([*weights, frozen], state)
    assert all(torch.equal(w.detach(), old) for w, old in zip(weights, before, strict=True))


def test_sharpness_aware_steps_without_a_gradient_move_nothing() -> None:
    weight = nn.Parameter(random(3))
    assert SAM().perturb([weight], SAMOptions()) == []
    weight.grad = torch.zeros(3)
    SAM().perturb([weight], SAMOptions())
    assert torch.equal(weight.detach(), random(3))
