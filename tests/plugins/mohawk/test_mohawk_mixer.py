"""The DM2 mixer: its matrix, its states, packed documents, folding, precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.plugins.mohawk.mohawk_models import difference, make_student, make_teacher, shake, tiny_facts, tokens
from xarch.kernels import mixing_matrix
from xarch_decoder.factored import SSDFactors
from xarch_decoder.model.decoder import make_sequence
from xarch_mohawk.dm2 import DM2
from xarch_mohawk.mixer import Z_BIAS

VARIANTS = {
    "rope": {},
    "plain": {"rope": False},
    "small-state": {"state_size": 6},
    "large-state": {"state_size": 12},
    "conv-2": {"conv": 2},
}


def _mixer(**options: object) -> DM2:
    student = make_student(make_teacher(tiny_facts()), **options)
    shake(student)
    return student.mixer(1)


def _hidden(rows: int, length: int, seed: int = 3) -> Tensor:
    return torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(seed))


def _ids(rows: int, length: int) -> Tensor:
    return torch.zeros(rows, length, dtype=torch.int64)


def test_the_gate_starts_as_one_with_slope_one():
    z = torch.tensor(Z_BIAS, dtype=torch.float64, requires_grad=True)
    F.silu(z).backward()
    assert abs(F.silu(z).item() - 1) < 1e-12
    assert z.grad is not None
    assert abs(z.grad.item() - 1) < 1e-9


def test_start_is_transparent():
    """The convolution is the identity and the gate 1, so the operands are plain projections."""
    mixer = make_student(make_teacher(tiny_facts()), rope=False).mixer(0)
    x = _hidden(2, 9)
    parts = mixer.operands(x, make_sequence(_ids(2, 9), None), plain=True)
    rows = F.linear(x, mixer.in_proj.weight)
    for part, value in (("x", parts.x_BLHP), ("B", parts.B_BLHN), ("C", parts.C_BLHN)):
        assert difference(value.flatten(2), rows[..., mixer.rows(part)]) < 1e-6, part
    assert (parts.gate_BLI - 1).abs().max() < 1e-6


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("documents", [False, True])
def test_output_is_its_own_matrix(options, documents):
    mixer = _mixer(**options).double()
    batch = tokens(tiny_facts(), 2, 70, documents=documents)
    sequence = make_sequence(batch["input_ids"], batch.get("segment_ids"))
    x = _hidden(2, 70).double()
    given = mixer.inner(x, sequence, {"matrix", "heads", "mixer_out"})
    factors: SSDFactors = given["matrix"]
    parts = mixer.operands(x, sequence)
    matrix_BHLL = mixing_matrix(
        factors.C_BLGN, factors.B_BLGN, factors.log_a_BLH, factors.D_H, segment_ids_BL=factors.segment_ids_BL
    )
    heads = torch.einsum("bhts,bshp->bthp", matrix_BHLL, parts.x_BLHP) * parts.gate_BLI.unflatten(-1, (4, 8))
    assert difference(given["heads"], heads) < 1e-12
    assert difference(given["mixer_out"], mixer.out_proj(heads.flatten(2))) < 1e-12
    assert torch.equal(given["mixer_out"], mixer(x, sequence))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("pieces", [(77,), (1,) * 77, (64, 13), (5, 1, 1, 40, 30)], ids=lambda p: str(len(p)))
def test_pieces_give_the_whole(options, pieces):
    mixer = _mixer(**options).double()
    x = _hidden(2, 77).double()
    whole = mixer(x, make_sequence(_ids(2, 77), None))
    state = tuple(torch.zeros(2, *spec.shape, dtype=torch.float64) for spec in mixer.state_spec())
    outputs, start = [], 0
    for length in pieces:
        positions = torch.arange(start, start + length).expand(2, -1)
        out, state = mixer.advance(x[:, start : start + length], positions, state)
        outputs.append(out)
        start += length
    assert difference(torch.cat(outputs, 1), whole) < 1e-12
    assert [tuple(s.shape[1:]) for s in state] == [spec.shape for spec in mixer.state_spec()]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_matrix_alone_leaves_out_what_it_does_not_need_and_has_the_same_gradients(options):
    batch = tokens(tiny_facts(), 2, 70, documents=True)
    sequence = make_sequence(batch["input_ids"], batch["segment_ids"])
    x = _hidden(2, 70).double()
    found = []
    for wanted in ({"matrix"}, {"matrix", "heads"}):
        mixer = _mixer(**options).double().requires_grad_()
        factors: SSDFactors = mixer.inner(x, sequence, wanted)["matrix"]
        for i, value in enumerate((factors.B_BLGN, factors.C_BLGN, factors.log_a_BLH)):
            (value * torch.linspace(-1, 1 + i, value.numel(), dtype=value.dtype).view_as(value)).sum().backward(
                retain_graph=True
            )
        gradients = [mixer.in_proj.weight.grad, mixer.conv1d.weight.grad, mixer.conv_bias.grad, mixer.alpha_bias.grad]
        found.append([factors.B_BLGN, factors.C_BLGN, factors.log_a_BLH, *gradients])
    assert all(difference(alone, whole) < 1e-12 for alone, whole in zip(*found, strict=True))
    gradient = found[0][3]
    assert not gradient[mixer.rows("x")].any()
    assert not gradient[mixer.rows("z")].any()
    assert gradient[mixer.rows("C")].any()


def test_documents_do_not_see_each_other():
    mixer = _mixer()
    x = _hidden(1, 50)
    segments = torch.tensor([[0] * 20 + [1] * 30])
    packed = mixer(x, make_sequence(_ids(1, 50), segments))
    for part in (slice(0, 20), slice(20, 50)):
        length = part.stop - part.start
        alone = mixer(x[:, part], make_sequence(_ids(1, length), None))
        assert difference(packed[:, part], alone) < 1e-5


def test_rope_makes_scores_depend_on_distance_alone():
    """With equal inputs at every place C_t · B_s is a function of t - s, and not constant."""
    x = _hidden(1, 1).expand(1, 12, -1)
    sequence = make_sequence(_ids(1, 12), None)
    for rope in (True, False):
        mixer = make_student(make_teacher(tiny_facts()), rope=rope).mixer(0).double()
        parts = mixer.operands(x.double(), sequence)
        scores = torch.einsum("blhn,bmhn->bhlm", parts.C_BLHN, parts.B_BLHN)
        diagonals = [scores.diagonal(offset, 2, 3) for offset in range(-11, 12)]
        assert all(difference(d, d[..., :1].expand_as(d)) < 1e-6 for d in diagonals)
        spread = torch.stack([d[..., 0] for d in diagonals]).std(0).min()
        assert (spread > 1e-3) == rope


def test_folding_the_gain_changes_nothing_else():
    mixer = _mixer().double()
    x, sequence = _hidden(2, 40).double(), make_sequence(_ids(2, 40), None)
    before = mixer(x, sequence)
    mixer.fold_gain()
    assert torch.equal(mixer.gain, torch.ones_like(mixer.gain))
    assert difference(mixer(x, sequence), before) < 1e-14
    folded = mixer.conv1d.weight.clone()
    mixer.fold_gain()
    assert torch.equal(mixer.conv1d.weight, folded)


def test_gradients_reach_every_parameter_and_not_the_gain():
    mixer = _mixer().requires_grad_(True)
    batch = tokens(tiny_facts(), 2, 30, documents=True)
    mixer(_hidden(2, 30), make_sequence(batch["input_ids"], batch["segment_ids"])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.parameters())
    assert not mixer.gain.requires_grad


def test_decay_stays_in_float32_under_autocast():
    mixer = _mixer()
    with torch.autocast("cpu", torch.bfloat16):
        parts = mixer.operands(_hidden(1, 8), make_sequence(_ids(1, 8), None))
    assert parts.log_a_BLH.dtype == torch.float32
    assert parts.log_a_BLH.max() <= 0


def test_no_weight_decay_on_what_is_not_a_matrix():
    assert set(_mixer().no_decay()) == {"conv1d.weight", "conv1d.bias", "alpha_bias", "z_bias", "D"}
