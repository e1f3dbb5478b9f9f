"""What holds for every target with recurrent mixers: pieces, documents, gradients, starts, closed-form fits, graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.plugins.mohawk.mohawk_models import (
    CPU,
    difference,
    logits,
    make_student,
    make_teacher,
    shake,
    tiny_facts,
    tokens,
)
from xarch import PlanError, Profile
from xarch.kernels import mixing_matrix, ssd
from xarch_decoder.copying import check_initialisation
from xarch_decoder.export import DecoderExport
from xarch_decoder.model.decoder import make_sequence
from xarch_mohawk.delta_fit import BETAS, HALF_LIVES, DeltaFit
from xarch_mohawk.halflife import HALF_LIVES as HALF_LIVES_SCALAR
from xarch_mohawk.halflife import HalfLifeFit, HeadFit, decay_bias, decay_rate
from xarch_mohawk.mixer import Z_BIAS, RecurrentMixer
from xarch_mohawk.target import GDNTarget, Mamba1Target, Mamba2Target

BIASED = {"qkv_bias": True, "out_bias": True, "qk_norm": True, "tied": False, "norm": "layer", "block": "parallel"}
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gdn": (GDNTarget, {}),
    "gdn-heads": (GDNTarget, {"states": "heads", "rope": True, "conv": 2}),
    "gdn-small": (GDNTarget, {"state_size": 6}),
    "gdn-stock": (GDNTarget, {"form": "stock"}),
    "mamba1": (Mamba1Target, {}),
    "mamba1-small": (Mamba1Target, {"state_size": 4, "conv": 2}),
    "mamba2": (Mamba2Target, {}),
    "mamba2-stock": (Mamba2Target, {"bias": False, "state_size": 12}),
}
each = pytest.mark.parametrize(("kind", "options"), VARIANTS.values(), ids=VARIANTS)
UNUSUAL = {name: VARIANTS[name] for name in ("gdn-heads", "gdn-stock", "mamba1-small", "mamba2-stock")}
"""Those whose operators the small students of `test_pairs_and_profiles.py` do not have."""


def _mixer(kind: Any, options: dict[str, Any]) -> RecurrentMixer[Any]:
    student = make_student(make_teacher(tiny_facts()), kind, **options)
    shake(student)
    return student.mixer(1)


def _hidden(rows: int, length: int) -> Tensor:
    return torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(3))


def _ids(rows: int, length: int) -> Tensor:
    return torch.zeros(rows, length, dtype=torch.int64)


@each
def test_pieces_give_the_whole(kind, options):
    mixer = _mixer(kind, options).double()
    x = _hidden(2, 77).double()
    whole = mixer(x, make_sequence(_ids(2, 77), None))
    for pieces in ((77,), (5, 1, 1, 40, 30), (1,) * 77):
        state = tuple(torch.zeros(2, *spec.shape, dtype=torch.float64) for spec in mixer.state_spec())
        outputs, start = [], 0
        for length in pieces:
            positions = torch.arange(start, start + length).expand(2, -1)
            out, state = mixer.advance(x[:, start : start + length], positions, state)
            outputs.append(out)
            start += length
        assert difference(torch.cat(outputs, 1), whole) < 1e-12
        assert [tuple(s.shape[1:]) for s in state] == [spec.shape for spec in mixer.state_spec()]


@each
def test_documents_do_not_see_each_other_and_taps_are_the_output(kind, options):
    mixer = _mixer(kind, options)
    x, segments = _hidden(1, 50), torch.tensor([[0] * 20 + [1] * 30])
    sequence = make_sequence(_ids(1, 50), segments)
    packed = mixer(x, sequence)
    for part in (slice(0, 20), slice(20, 50)):
        alone = mixer(x[:, part], make_sequence(_ids(1, part.stop - part.start), None))
        assert difference(packed[:, part], alone) < 1e-5
    taps = mixer.inner(x, sequence, {"heads", "mixer_out"})
    assert torch.equal(taps["mixer_out"], packed)
    assert torch.equal(mixer.out_proj(taps["heads"].flatten(2)), packed)


@each
def test_gradients_reach_every_parameter(kind, options):
    mixer = _mixer(kind, options).requires_grad_(True)
    batch = tokens(tiny_facts(), 2, 30, documents=True)
    mixer(_hidden(2, 30), make_sequence(batch["input_ids"], batch["segment_ids"])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.parameters())
    assert not any(p.ndim < 2 for name, p in mixer.named_parameters() if name not in mixer.no_decay())


@each
@pytest.mark.parametrize("changes", [{}, BIASED], ids=["llama", "biased"])
def test_every_tensor_is_written_and_planned(kind, options, changes):
    facts, target = tiny_facts(**changes), kind()
    chosen = target.Options.model_validate(options)
    student = target.build(facts, chosen, {}, device=torch.device("meta"))
    planned = target.initialisation(facts, student)
    student.module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in student.module.state_dict().values():
            tensor.fill_(float("nan"))
    done = target.initialise(student, make_teacher(facts))
    check_initialisation(student, done)
    assert done == planned
    assert all(torch.isfinite(t).all() for t in student.module.state_dict().values())
    assert torch.isfinite(logits(student, tokens(facts, 1, 20))).all()


@each
def test_the_closed_form_brings_the_mixer_near_the_attention(kind, options):
    teacher, target = make_teacher(tiny_facts()), kind()
    batch = tokens(teacher.facts, 12, 64, documents=True)
    for fit in ("scale", "init"):
        student = make_student(teacher, kind, **options)
        with torch.no_grad():
            solver = target.solver(student, "blocks.1", {"fit": fit})
            solver.observe(teacher.collect(batch, set(solver.inputs)), batch)
            figures = solver.solve()
        # An output of nothing has an error of 1; a random teacher that attends far leaves little to explain.
        assert figures["relative_error"] < min(figures["relative_error_before"], 0.999)
        assert figures["median_half_life"] > 0


def test_states_made_by_a_mixer_are_found_again():
    """Half-life and beta of every state, from what its query heads read."""
    mixer = _mixer(GDNTarget, {})
    half_life, beta = torch.tensor([4.0, 64.0]), torch.tensor([0.7, 0.05])
    x, sequence = _hidden(2, 60), make_sequence(_ids(2, 60), None)
    with torch.no_grad():
        mixer.set_states(half_life, beta)
        parts = mixer.operands(x, sequence)
        heads = mixer.recur(replace(parts, z_BLI=torch.full_like(parts.z_BLI, Z_BIAS)), None, None)[0]
        fit = DeltaFit(mixer, HALF_LIVES, BETAS)
        mixer.set_states(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5]))
        fit.observe(x, -3.0 * heads.unflatten(-1, (4, 8)), sequence)
        figures = fit.solve()
    assert torch.allclose(torch.sigmoid(mixer.in_proj.bias[mixer.rows("beta")]), beta)
    assert mixer.dt_bias.tolist() == pytest.approx([decay_bias(h) for h in half_life.tolist()])
    assert figures == {"median_half_life": 4.0, "median_beta": pytest.approx(0.05)}


@pytest.mark.parametrize("kind", [Mamba1Target, Mamba2Target])
def test_half_lives_made_by_a_mixer_are_found_again(kind):
    """Groups of channels in Mamba, heads in Mamba-2, whose norm leaves only the ratio of skip weight and scale."""
    mixer = _mixer(kind, {})
    half_life = torch.tensor([4.0, 64.0, 1.0, 16.0])
    scale, skip = torch.tensor([0.5, -0.2, 0.1, 0.3]), torch.tensor([0.2, 0.1, -0.4, 0.0])
    x, sequence = _hidden(2, 60), make_sequence(_ids(2, 60), None)
    with torch.no_grad():
        mixer.set_heads(HeadFit(torch.ones(4), torch.ones(4), torch.zeros(4)))
        x_BLHP, B_BLHN, C_BLHN = mixer.scalar_operands(x, sequence)
        log_a = torch.tensor([-decay_rate(h) for h in half_life.tolist()]).expand(*x_BLHP.shape[:3])
        heads = ssd(x_BLHP, log_a, B_BLHN, C_BLHN * scale[:, None], skip)
        fit = HalfLifeFit(mixer, HALF_LIVES_SCALAR)
        fit.observe(x, heads, sequence)
        fit.solve()
        parts = mixer.operands(x, sequence)
        if kind is Mamba1Target:
            found = mixer.recur(replace(parts, z_BIL=torch.full_like(parts.z_BIL, Z_BIAS)), None, None)[0]
            wanted = heads.flatten(2)
        else:
            found = mixer.recur(replace(parts, gate_BLI=torch.ones_like(parts.gate_BLI)), None, None)[0]
            wanted = mixer.norm((heads / scale[:, None]).flatten(2))
    assert mixer.A_log.exp().flatten().unique().tolist() == pytest.approx(sorted(map(decay_rate, half_life.tolist())))
    assert difference(found, wanted) < 1e-3


def test_the_output_of_mamba2_is_its_own_matrix():
    mixer = _mixer(Mamba2Target, {}).double()
    batch, x = tokens(tiny_facts(), 2, 70, documents=True), _hidden(2, 70).double()
    sequence = make_sequence(batch["input_ids"], batch["segment_ids"])
    given, parts = mixer.inner(x, sequence, {"matrix", "heads"}), mixer.operands(x, sequence)
    found = given["matrix"]
    matrix_BHLL = mixing_matrix(
        found.C_BLGN, found.B_BLGN, found.log_a_BLH, found.D_H, segment_ids_BL=found.segment_ids_BL
    )
    heads = torch.einsum("bhts,bshp->bthp", matrix_BHLL, parts.x_BLHP).flatten(2)
    assert difference(given["heads"].flatten(2), mixer.norm(heads * parts.gate_BLI)) < 1e-12


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (GDNTarget, {"q": ("q", 1), "k": ("k", 1), "v": ("v", 1)}),
        (Mamba1Target, {"C": ("q", 1), "B": ("k", 1), "x": ("v", 1)}),
        (Mamba2Target, {"C": ("q", 1), "B": ("k", 2), "x": ("v", 2)}),
    ],
)
def test_rows_are_those_of_the_attention(kind, parts):
    """As many heads as the mixer has, repeated whole; only the scale of queries and keys differs."""
    teacher = make_teacher(tiny_facts())
    mixer, weights = make_student(teacher, kind).mixer(1), teacher.weights()
    for part, (name, repeats) in parts.items():
        theirs = weights[f"blocks.1.attention.{name}.weight"].unflatten(0, (-1, 8)).repeat_interleave(repeats, 0)
        ours = mixer.in_proj.weight[mixer.rows(part)].unflatten(0, (-1, 8))
        ratio = ours / theirs
        assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-4), part
    assert torch.equal(mixer.out_proj.weight, weights["blocks.1.attention.o.weight"])


def test_query_heads_that_share_a_state_divide_its_bytes():
    facts, sizes = tiny_facts(), []
    for states in ("shared", "heads"):
        options = GDNTarget.Options.model_validate({"states": states})
        mixer = GDNTarget().build(facts, options, {}, device=torch.device("meta")).mixer(0)
        sizes.append(mixer.recurrent_state().bytes)
    assert sizes[1] == 2 * sizes[0] == 4 * 8 * 8 * 4


def test_options_that_contradict_are_refused():
    with pytest.raises(ValueError, match="the stock form does not rotate"):
        GDNTarget.Options.model_validate({"form": "stock", "rope": True})
    with pytest.raises(PlanError, match="3 does not divide the 8 channels of a head"):
        make_student(make_teacher(tiny_facts()), Mamba1Target, state_size=3)


@each
def test_finished_students_load_strictly_and_are_the_same(kind, options):
    teacher = make_teacher(tiny_facts())
    student = make_student(teacher, kind, layers={"replace": [0, 2]}, **options)
    shake(student)
    batch = tokens(teacher.facts, 2, 33)
    before = logits(student, batch)
    student.finish()
    assert difference(logits(student, batch), before) < 1e-5
    chosen = kind().Options.model_validate({"layers": {"replace": [0, 2]}, **options})
    again = kind().build(teacher.facts, chosen, {}, device=CPU)
    again.module.load_state_dict(student.module.state_dict(), strict=True)
    assert torch.equal(logits(again, batch), logits(student, batch))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), UNUSUAL.values(), ids=UNUSUAL)
def test_export_with_static_shapes(kind, options, tmp_path: Path):
    """Static shapes, few plain operators, low rank; prefill and decode reproduce the student."""
    onnx = pytest.importorskip("onnx")
    from xarch.export.run import export_profile

    student = make_student(make_teacher(tiny_facts()), kind, layers={"replace": [1]}, **options)
    shake(student)
    student.finish()
    export_profile(
        student,
        kind(),
        Profile("static", "CPUExecutionProvider", 18, 8, static=True, max_rank=5),
        options=DecoderExport(prefill=[16], context=64),
        batches=[tokens(student.facts, 2, 100)],
        out=tmp_path,
        metadata={},
        say=lambda text: None,
    )
    for file in tmp_path.glob("*.onnx"):
        graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
        operators = {node.op_type for node in graph.node}
        assert not operators & {"Loop", "Scan", "If", "CumSum", "Einsum", "Trilu", "NonZero", "ScatterND"}
        assert max(len(v.type.tensor_type.shape.dim) for v in graph.value_info) <= 5
