from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from xarch.config.schema import Group, Optimiser
from xarch.engine.distributed import Distributed
from xarch.engine.trainable import Trainable
from xarch.errors import UsageError


class Student:
    """What a stage trains: two layers, one of them thin."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 3))

    def no_decay(self) -> list[str]:
        return []


def trainable(student: Student, **options: Any) -> Trainable:
    chosen = {name: Group(lr=0.5 if name.startswith("2") else 1.0) for name, _ in student.module.named_parameters()}
    projector = nn.Linear(16, 16)
    return Trainable(student, chosen, projector, Optimiser(weight_decay=0.1, **options), fused=True)  # type: ignore[arg-type]


def step(student: Student, trained: Trainable, number: int) -> None:
    x_BD = torch.randn(8, 20, generator=torch.Generator().manual_seed(number))
    trained.zero_grad()
    student.module(x_BD).square().mean().backward()
    trained.step(0.01)


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_saved_and_loaded_it_goes_on_bit_for_bit(algorithm: str) -> None:
    student = Student()
    trained = trainable(student, algorithm=algorithm)
    for number in range(3):
        step(student, trained, number)
    saved = copy.deepcopy(trained.tensors(Distributed()))
    other = Student()
    again = trainable(other, algorithm=algorithm)
    step(other, again, 7)
    again.load(*saved, Distributed())
    for number in range(3, 6):
        step(student, trained, number)
        step(other, again, number)
    for mine, theirs in zip(student.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_muon_moves_matrices_of_layers_and_adamw_the_rest() -> None:
    student = Student()
    trained = trainable(student, algorithm="muon")
    step(student, trained, 0)
    _, moments = trained.tensors(Distributed())
    by_name: dict[str, set[str]] = {}
    for key in moments:
        part, name = key.split("|")
        by_name.setdefault(name, set()).add(part)
    assert by_name["0.weight"] == {"momentum"}
    assert by_name["0.bias"] == by_name["2.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    adamw, muon = trained.optimisers
    assert isinstance(adamw, torch.optim.AdamW)
    assert [(g["lr"], g["weight_decay"]) for g in muon.param_groups] == [(0.01, 0.1)]
    assert {g["lr"] for g in adamw.param_groups} == {0.01, 0.005}


@pytest.mark.parametrize(("was", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_a_checkpoint_of_another_algorithm_changes_nothing(was: str, now: str) -> None:
    student = Student()
    trained = trainable(student, algorithm=was)
    step(student, trained, 0)
    values, moments = trained.tensors(Distributed())
    other_student = Student()
    other = trainable(other_student, algorithm=now)
    before = copy.deepcopy(other_student.module.state_dict())
    with pytest.raises(UsageError, match=f"the checkpoint trained 0.weight by {was}, the plan does by {now}"):
        other.load(values, moments, Distributed())
    assert all(torch.equal(before[name], value) for name, value in other_student.module.state_dict().items())


def test_a_checkpoint_without_a_parameter_that_trains_is_refused() -> None:
    student = Student()
    trained = trainable(student)
    values, moments = trained.tensors(Distributed())
    del values["2.bias"]
    with pytest.raises(UsageError, match=r"no parameter 2\.bias, which the plan trains"):
        trained.load(values, moments, Distributed())
