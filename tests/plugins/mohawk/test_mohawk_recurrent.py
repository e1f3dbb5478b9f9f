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
from xarch import Profile
from xarch_decoder.copying import check_initialisation
from xarch_decoder.export import DecoderExport
from xarch_decoder.model.decoder import make_sequence
from xarch_mohawk.delta_fit import BETAS, HALF_LIVES, DeltaFit
from xarch_mohawk.halflife import decay_bias
from xarch_mohawk.mixer import Z_BIAS, RecurrentMixer
from xarch_mohawk.target import GDNTarget

BIASED = {"qkv_bias": True, "out_bias": True, "qk_norm": True, "tied": False, "norm": "layer", "block": "parallel"}
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gdn": (GDNTarget, {}),
    "gdn-heads": (GDNTarget, {"states": "heads", "rope": False, "conv": 2}),
    "gdn-small": (GDNTarget, {"state_size": 6}),
    "gdn-stock": (GDNTarget, {"form": "stock"}),
}
each = pytest.mark.parametrize(("kind", "options"), VARIANTS.values(), ids=VARIANTS)


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
        assert figures["relative_error"] < min(figures["relative_error_before"], 0.99)
        assert figures["median_half_life"] > 0


def test_states_made_by_a_mixer_are_found_again():
    """Half-life and beta of every state, from what its query heads read."""
    mixer = _mixer(GDNTarget, {})
    half_life, beta = torch.tensor([4.0, 64.0]), torch.tensor([0.9, 0.3])
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
    assert figures == {"median_half_life": 4.0, "median_beta": pytest.approx(0.3)}


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
@each
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
