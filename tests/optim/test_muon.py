from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from xarch.optim import Muon, layer_matrices
from xarch.optim.muon import orthogonalised, update_work


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (40, 17), (17, 40), (128, 45)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int], scale: float) -> None:
    matrix = scale * random(*shape)
    got = orthogonalised(matrix)
    values = torch.linalg.svdvals(got)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix / scale, full_matrices=False)
    along = torch.einsum("mr,mn,rn->r", u, got, vh)
    torch.testing.assert_close(along.sort().values, values.sort().values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_the_work_of_an_update_is_counted(shape: tuple[int, int]) -> None:
    with FlopCounterMode(display=False) as counter:
        orthogonalised(random(*shape))
    assert counter.get_total_flops() == 2 * update_work(shape)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    weight = nn.Parameter(random(16, 20))
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=1.0).step()
    assert torch.equal(weight, before)


@pytest.mark.slow
def test_a_gradient_that_vanished_stops_moving_the_weight() -> None:
    weight = nn.Parameter(random(20, 24))
    optimiser = Muon([weight], lr=1e-3)
    for step in range(5):
        weight.grad = random(20, 24, seed=step)
        optimiser.step()
    weight.grad = torch.zeros_like(weight)
    for _ in range(1500):
        optimiser.step()
    settled = weight.detach().clone()
    for _ in range(1500):
        optimiser.step()
    assert bool(weight.isfinite().all())
    assert torch.equal(weight, settled)


def test_an_update_is_as_large_as_one_of_adamw() -> None:
    weight = nn.Parameter(torch.zeros(64, 96))
    weight.grad = random(64, 96)
    Muon([weight], lr=1.0).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.15)


def test_the_same_as_the_optimiser_of_torch() -> None:
    """Up to the bfloat16 of its iteration."""
    mine, theirs = (nn.Parameter(random(32, 48)) for _ in range(2))
    optimisers = (
        Muon([mine], lr=0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(5):
        for weight, optimiser in zip((mine, theirs), optimisers, strict=True):
            weight.grad = random(32, 48, seed=step + 1)
            optimiser.step()
    moved = (mine - random(32, 48)).norm()
    assert (mine - theirs).norm() / moved < 0.02


def test_a_regression_is_solved() -> None:
    inputs_BD, wanted_DE = random(256, 32), random(32, 24, seed=1)
    weight = nn.Parameter(torch.zeros(32, 24))
    optimiser, losses = Muon([weight], lr=0.5), []
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.5 * (1 - step / 200)
        optimiser.zero_grad()
        loss = (inputs_BD @ (weight - wanted_DE)).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-3 * losses[0]


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.zeros(3))])


def test_matrices_are_weights_of_layers_that_are_no_tables() -> None:
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(40, 32),
            "wide": nn.Linear(32, 48),
            "thin": nn.Linear(48, 3),
            "head": nn.Linear(32, 40, bias=False),
        }
    )
    model["head"].weight = model["table"].weight
    model.register_parameter("free", nn.Parameter(torch.zeros(32, 32)))
    assert layer_matrices(model) == {"wide.weight"}


@pytest.mark.slow
def test_sharded_weights_move_as_whole_ones() -> None:
    program = Path(__file__).with_name("sharded_muon.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
