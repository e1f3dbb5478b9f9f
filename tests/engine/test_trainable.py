"""What a stage trains: groups, clipping, optimisers of several algorithms, averages, and their checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from xarch.config.schema import Group, Optimiser
from xarch.engine.distributed import Distributed
from xarch.engine.modes import Modes
from xarch.engine.optimisers import Optimisers
from xarch.engine.trainable import Trainable, Trained
from xarch.errors import UsageError
from xarch.optim.ema import EMA
from xarch.registry.loader import get_registry


class Student:
    """What a stage trains: two layers, one of them thin."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 3))


def trainable(
    student: Student,
    *,
    decay: float | None = None,
    clip: float = 1.0,
    sites: Mapping[str, str] | None = None,
    **options: Any,
) -> Trainable:
    settings = Optimiser(weight_decay=0.1, clip=clip, **options)
    projector = nn.Linear(16, 16)
    named = {
        **dict(student.module.named_parameters()),
        **{f"connectors.{n}": p for n, p in projector.named_parameters()},
    }
    trained = {
        name: Trained(p, "thin" if name.startswith("2") else "all", 0.1, (sites or {}).get(name, ""))
        for name, p in named.items()
    }
    optimisers = Optimisers(
        settings,
        "optimiser",
        get_registry(),
        student.module,
        {name: (t.parameter, t.group, t.decay) for name, t in trained.items()},
        fused=True,
    )
    made = Trainable(
        trained,
        optimisers,
        [],
        settings.lr,
        settings.clip,
        {},
        Modes([student.module], []),
        Distributed(),
        None if decay is None else EMA(named, decay),
        decay is not None,
    )
    made.at({"all": Group(), "thin": Group(lr=0.5)})
    return made


def step(student: Student, trained: Trainable, number: int) -> None:
    x_BD = torch.randn(8, 20, generator=torch.Generator().manual_seed(number))
    trained.zero_grad()
    student.module(x_BD).square().mean().backward()
    trained.step(10.0)


@pytest.mark.parametrize("algorithm", ["adamw", "muon", "sgd", "lamb"])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_saved_and_loaded_it_goes_on_bit_for_bit(algorithm: str, decay: float | None) -> None:
    student = Student()
    trained = trainable(student, algorithm=algorithm, decay=decay)
    for number in range(3):
        step(student, trained, number)
    saved = copy.deepcopy(trained.state())
    other = Student()
    again = trainable(other, algorithm=algorithm, decay=decay)
    step(other, again, 7)
    again.load(*saved)
    for number in range(3, 6):
        step(student, trained, number)
        step(other, again, number)
    trained.finish()
    again.finish()
    for mine, theirs in zip(student.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_muon_moves_matrices_of_layers_and_adamw_the_rest() -> None:
    student = Student()
    trained = trainable(student, algorithm="muon")
    step(student, trained, 0)
    _, moments = trained.state()
    by_name: dict[str, set[str]] = {}
    for key in moments:
        part, algorithm, name = key.split("|")
        by_name.setdefault(f"{algorithm} {name}", set()).add(part)
    assert by_name["muon 0.weight"] == {"momentum"}
    assert by_name["adamw 0.bias"] == by_name["adamw 2.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    (_, muon), (_, adamw) = trained.optimisers.parts
    assert isinstance(adamw, torch.optim.AdamW)
    assert [(g["lr"], g["weight_decay"]) for g in muon.param_groups] == [(0.01, 0.1)]
    assert {g["lr"] for g in adamw.param_groups} == {0.01, 0.005}


@pytest.mark.parametrize(("was", "now"), [("adamw", "muon"), ("muon", "adamw"), ("adamw", "lamb")])
def test_a_checkpoint_of_another_algorithm_changes_nothing(was: str, now: str) -> None:
    student = Student()
    trained = trainable(student, algorithm=was)
    step(student, trained, 0)
    values, moments = trained.state()
    other_student = Student()
    other = trainable(other_student, algorithm=now)
    before = copy.deepcopy(other_student.module.state_dict())
    with pytest.raises(UsageError, match=f"the checkpoint trained 0.weight with {was}, the plan uses {now}"):
        other.load(values, moments)
    assert all(torch.equal(before[name], value) for name, value in other_student.module.state_dict().items())


def test_a_checkpoint_without_a_parameter_that_trains_is_refused() -> None:
    student = Student()
    trained = trainable(student)
    values, moments = trained.state()
    del values["2.bias"]
    with pytest.raises(UsageError, match=r"lacks 2\.bias, which the plan trains"):
        trained.load(values, moments)


def gradients(trained: Trainable) -> None:
    for name, parameter in trained.named.items():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad.flatten()[0] = 3.0 if name.startswith("connectors") else 4.0


def test_connectors_are_clipped_together_with_the_student() -> None:
    """house A3: clipped apart, both would have had norm 1, together 1.41 for ``clip: 1``."""
    trained = trainable(Student())
    gradients(trained)
    assert trained.clip() == pytest.approx((4 * 16 + 2 * 9) ** 0.5)
    total = sum(float(p.grad.square().sum()) for p in trained.named.values() if p.grad is not None)
    assert total == pytest.approx(1.0, rel=1e-4)


def test_every_site_is_clipped_with_its_own_connectors() -> None:
    """house A3, local: sites are independent problems."""
    sites = {"0.weight": "a", "0.bias": "a", "connectors.weight": "a", "2.weight": "b", "2.bias": "b"}
    trained = trainable(Student(), sites={**sites, "connectors.bias": "b"})
    gradients(trained)
    trained.clip()
    for site in ("a", "b"):
        parts = [t.parameter.grad for t in trained.trained.values() if t.site == site]
        assert sum(float(g.square().sum()) for g in parts if g is not None) == pytest.approx(1.0, rel=1e-4)


def test_a_group_at_rate_zero_rests() -> None:
    student = Student()
    trained = trainable(student, clip=0.0)
    trained.at({"all": Group(), "thin": Group(lr=0.0)})
    before = copy.deepcopy(student.module.state_dict())
    gradients(trained)
    assert trained.clip() == pytest.approx((2 * 16 + 2 * 9) ** 0.5)
    trained.step(1.0)
    after = student.module.state_dict()
    assert torch.equal(before["2.weight"], after["2.weight"])
    assert not torch.equal(before["0.weight"], after["0.weight"])


def test_an_average_is_swapped_in_and_out_and_adopted_at_the_end() -> None:
    student = Student()
    trained = trainable(student, decay=0.5)
    seen = [student.module[0].bias.detach().clone()]
    for number in range(4):
        step(student, trained, number)
        seen.append(student.module[0].bias.detach().clone())
    expected = seen[0]
    for number, value in enumerate(seen[1:], start=1):
        share = 1 - min(0.5, (1 + number) / (10 + number))
        expected = expected.lerp(value, share)
    with trained.averaged(), trained.averaged():
        assert torch.allclose(student.module[0].bias, expected)
    assert torch.equal(student.module[0].bias, seen[-1])
    kept = trained.snapshot()
    trained.finish()
    assert torch.allclose(student.module[0].bias, expected)
    assert torch.equal(kept["0.bias"], student.module[0].bias)
