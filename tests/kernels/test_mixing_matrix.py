"""The materialised mixing matrix: what the recurrence applies, one form against the other, and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import mixing_matrix, ssd
from xarch.kernels.dispatch import use_backend

BACKENDS = ["naive", "torch"]


def make(batch: int, length: int, heads: int, groups: int, size: int = 3) -> list[Tensor]:
    """C, B, log_a and D in float64."""
    generator = torch.Generator().manual_seed(length)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    C, B = randn(batch, length, groups, size), randn(batch, length, groups, size)
    return [C, B, -F.softplus(randn(batch, length, heads) - 1), randn(heads)]


def options(batch: int, length: int) -> dict[str, Tensor]:
    ids = (torch.arange(length) // 9 % 2).expand(batch, -1)
    mask = (torch.arange(length) < length - 4).expand(batch, -1)
    return {"segment_ids_BL": ids, "mask_BL": mask}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 2, 23])
def test_it_is_what_the_recurrence_applies(length, heads, groups, backend):
    C, B, log_a, D = make(2, length, heads, groups)
    ids = options(2, length)["segment_ids_BL"]
    x = torch.randn(2, length, heads, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    M = mixing_matrix(C, B, log_a, D, segment_ids_BL=ids, backend=backend)
    want = ssd(x, log_a, B, C, D, segment_ids_BL=ids, backend="naive")
    assert torch.allclose(torch.einsum("bhts,bshp->bthp", M, x), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_forms_and_their_gradients_agree(dtype, skip):
    found = []
    for backend, wide in [("torch", dtype), ("naive", torch.float64)]:
        leaves = [t.to(wide).requires_grad_() for t in make(2, 40, 4, 2)]
        M = mixing_matrix(*leaves[:3], leaves[3] if skip else None, **options(2, 40), backend=backend)
        assert M.dtype == wide
        weight = torch.linspace(-1, 2, M.numel(), dtype=torch.float64).view_as(M).to(wide)
        grads = torch.autograd.grad((M * weight).sum(), leaves[: 4 if skip else 3])
        found.append([M.detach(), *grads])
    for got, want in zip(*found, strict=True):
        limit = 1e-12 if dtype == torch.float64 else 1e-5
        assert float((got.double() - want).norm() / want.norm()) <= limit


def test_gradcheck():
    leaves = [t.requires_grad_() for t in make(1, 6, 2, 1, 2)]
    assert torch.autograd.gradcheck(lambda *t: mixing_matrix(*t, backend="torch"), leaves)


def test_prefix_sums_keep_their_digits_far_from_the_start():
    C, B, log_a, _ = make(1, 1200, 1, 1)
    log_a = (log_a * 10).float()
    got = mixing_matrix(C.float(), B.float(), log_a, backend="torch")
    want = mixing_matrix(C.float().double(), B.float().double(), log_a.double(), backend="naive")
    assert float((got - want).abs().max() / want.abs().max()) <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_above_the_diagonal_across_documents_and_in_padding(backend):
    ids = torch.tensor([[0, 0, 1, 1, 0, 0]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    M = mixing_matrix(*make(1, 6, 2, 1), segment_ids_BL=ids, mask_BL=mask, backend=backend)
    pairs = torch.zeros(6, 6, dtype=torch.bool)
    for t, s in [(0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (3, 3), (4, 4)]:
        pairs[t, s] = True
    assert torch.equal(M != 0, pairs.expand(1, 2, 6, 6))


@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_and_half_precision(backend):
    C, B, log_a, D = make(1, 20, 2, 2)
    log_a[:, ::5] = -1e30
    M = mixing_matrix(C.bfloat16(), B.bfloat16(), log_a.float(), D.float(), backend=backend)
    assert M.dtype == torch.float32
    assert torch.isfinite(M).all()
    assert float(M[:, :, 5:10, :5].abs().max()) <= 1e-20


def test_a_requested_backend_runs():
    operands = make(1, 12, 2, 1)
    with use_backend("naive"):
        requested = mixing_matrix(*operands)
    assert torch.equal(requested, mixing_matrix(*operands, backend="naive"))
    with pytest.raises(UsageError, match="has no backend 'cpp'"):
        mixing_matrix(*operands, backend="cpp")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 9, 4), "want C"),
        (1, torch.zeros(2, 9, 2, 4), "B has shape"),
        (2, torch.zeros(2, 8, 4), "log_a has shape"),
        (2, torch.zeros(2, 9, 3), "2 B/C groups do not divide 3 heads"),
        (3, torch.zeros(3), "D has shape"),
    ],
)
def test_wrong_arguments_are_named(place, value, message):
    operands = make(2, 9, 4, 2)
    operands[place] = value
    if place == 2 and value.shape[2] == 3:
        operands[3] = torch.zeros(3)
    with pytest.raises(UsageError, match=message):
        mixing_matrix(*operands)
