"""The DM2 target: options, structure, initialisation with full coverage, saving and loading, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

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
from xarch import PlanError, Profile, UsageError
from xarch.export.profiles import cpu
from xarch_decoder.copying import check_initialisation
from xarch_decoder.export import DecoderExport
from xarch_decoder.teacher import StudentTeacher
from xarch_mohawk.options import DM2Options
from xarch_mohawk.target import DM2Target

STATIC = Profile("static", "CPUExecutionProvider", 18, 8, static=True, max_rank=5)
BIASED = {"qkv_bias": True, "out_bias": True, "qk_norm": True, "tied": False, "norm": "layer", "block": "parallel"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"every": 3}, [1, 4]),
        ({"every": 1}, [0, 1, 2, 3, 4, 5, 6]),
        ({"keep": [0, 6]}, [1, 2, 3, 4, 5]),
        ({"replace": [5, 2, 2]}, [2, 5]),
        ({"choose": "kl", "count": 2}, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_layer_rules(layers, expected):
    rule = DM2Options.model_validate({"layers": layers}).layers
    assert rule.replaced(7) == expected
    assert DM2Options.model_validate(DM2Options(layers=rule).model_dump(mode="json")).layers == rule


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"every": 2, "keep": [1]}, "got keep and every"),
        ({"choose": "kl"}, "must be set together"),
        ({"count": 3}, "must be set together"),
        ({"choose": "error", "count": 3}, "'kl'"),
        ({"every": 0}, "greater than or equal to 1"),
        ({"skip": [1]}, "Extra inputs"),
        ("some", "expected `all`"),
        ([1, 2], "expected `all`"),
        ({"replace": []}, "at least 1"),
    ],
)
def test_wrong_layer_rules_say_what_is_wrong(layers, said):
    with pytest.raises(ValidationError, match=said):
        DM2Options.model_validate({"layers": layers})


@pytest.mark.parametrize(
    "layers", [{"replace": [3]}, {"keep": [-1]}, {"keep": [0, 1, 2]}, {"every": 9}, {"choose": "kl", "count": 4}]
)
def test_rules_that_do_not_fit_the_decoder(layers):
    with pytest.raises(PlanError, match=r"student\.options\.layers"):
        DM2Target().build(tiny_facts(), DM2Options.model_validate({"layers": layers}), {}, device=torch.device("meta"))


def test_odd_state_of_rotary_pairs_is_refused():
    with pytest.raises(PlanError, match="state_size: 5 is odd"):
        DM2Target().build(tiny_facts(), DM2Options(state_size=5), {}, device=torch.device("meta"))


@pytest.mark.parametrize("layers", [{"every": 3}, {"keep": [9]}, {"choose": "kl", "count": 10}, {}])
def test_tiny_fits_two_layers(layers):
    options = DM2Target().tiny(DM2Options.model_validate({"layers": layers, "state_size": 6}))
    assert isinstance(options, DM2Options)
    assert options.state_size == 6
    assert options.layers.replaced(2)
    assert options.layers.count in (None, 1)


def test_meta_build_allocates_nothing_and_plans_what_is_done():
    facts = tiny_facts()
    target = DM2Target()
    options = DM2Options.model_validate({"layers": {"choose": "kl", "count": 1}})
    planned = target.build(facts, options, {}, device=torch.device("meta"))
    assert {p.device.type for p in planned.module.state_dict().values()} == {"meta"}
    student = target.build(facts, options, {}, device=CPU)
    done = target.initialise(student, make_teacher(facts))
    assert done == target.initialisation(facts, planned)
    check_initialisation(student, done)


@pytest.mark.parametrize("changes", [{}, BIASED], ids=["llama", "biased"])
@pytest.mark.parametrize("options", [{}, {"state_size": 6}, {"state_size": 12}], ids=["same", "small", "large"])
def test_every_tensor_is_written(changes, options):
    facts = tiny_facts(**changes)
    target = DM2Target()
    student = target.build(facts, DM2Options.model_validate(options), {}, device=torch.device("meta"))
    student.module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in student.module.state_dict().values():
            tensor.fill_(float("nan"))
    done = target.initialise(student, make_teacher(facts))
    check_initialisation(student, done)
    assert all(torch.isfinite(t).all() for t in student.module.state_dict().values())
    assert torch.isfinite(logits(student, tokens(facts, 1, 20))).all()


def test_heads_of_grouped_keys_are_repeated_whole():
    teacher = make_teacher(tiny_facts())
    mixer = make_student(teacher).mixer(1)
    weights = teacher.weights()
    for head in range(4):
        shared, own = slice(head // 2 * 8, head // 2 * 8 + 8), slice(head * 8, head * 8 + 8)
        assert torch.equal(mixer.in_proj.weight[mixer.rows("x")][own], weights["blocks.1.attention.v.weight"][shared])
        for part, source, rows in (("B", "k", shared), ("C", "q", own)):
            copied = weights[f"blocks.1.attention.{source}.weight"][rows]
            scale = (32 * copied.square().mean()).rsqrt()
            assert torch.equal(mixer.in_proj.weight[mixer.rows(part)][own], copied * scale)
    assert torch.equal(mixer.out_proj.weight, weights["blocks.1.attention.o.weight"])
    assert not mixer.in_proj.weight[mixer.rows("z")].any()
    assert not mixer.in_proj.weight[mixer.rows("alpha")].any()


def test_small_state_keeps_the_slowest_pairs():
    teacher = make_teacher(tiny_facts())
    full, small = make_student(teacher).mixer(0), make_student(teacher, state_size=4).mixer(0)
    rows = full.in_proj.weight[full.rows("C")].unflatten(0, (4, 8))[:, [2, 3, 6, 7]]
    kept = small.in_proj.weight[small.rows("C")].unflatten(0, (4, 4))
    assert small.frequencies == full.frequencies[2:]
    ratio = kept / rows
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-5)


def test_biases_and_norm_weights_are_carried_over():
    teacher = make_teacher(tiny_facts(qkv_bias=True, out_bias=True, qk_norm=True))
    weights = teacher.weights()
    mixer = make_student(teacher).mixer(2)
    assert torch.equal(mixer.conv_bias[mixer.rows("x")][:8], weights["blocks.2.attention.v.bias"][:8])
    scaled = weights["blocks.2.attention.q.weight"][:8] * weights["blocks.2.attention.q_norm.weight"][:, None]
    scaled = scaled * (32 * scaled.square().mean()).rsqrt()
    assert torch.allclose(mixer.in_proj.weight[mixer.rows("C")][:8], scaled, rtol=1e-6)
    assert torch.equal(mixer.out_proj.bias, weights["blocks.2.attention.o.bias"])


def test_a_missing_tensor_is_an_error():
    teacher = make_teacher(tiny_facts())

    class Lacking(StudentTeacher):
        def weights(self):
            return {name: t for name, t in super().weights().items() if name != "blocks.1.attention.k.weight"}

    target = DM2Target()
    student = target.build(teacher.facts, DM2Options(), {}, device=CPU)
    with pytest.raises(PlanError, match=r"no tensor 'blocks\.1\.attention\.k\.weight'"):
        target.initialise(student, Lacking(teacher.student, ref="lacking", fingerprint="lacking"))


def test_student_that_keeps_all_attention_is_the_teacher():
    facts = tiny_facts()
    teacher = make_teacher(facts)
    target = DM2Target()
    student = target.build(facts, DM2Options(), {"layers": []}, device=CPU)
    target.initialise(student, teacher)
    batch = tokens(facts, 2, 40, documents=True)
    assert difference(logits(student, batch), logits(teacher, batch)) <= 1e-6


def test_decided_layers_are_built_again():
    facts = tiny_facts()
    options = DM2Options.model_validate({"layers": {"choose": "kl", "count": 2}})
    student = DM2Target().build(facts, options, {"layers": [0, 2]}, device=CPU)
    assert student.replaced == (0, 2)
    assert student.open_layers == ()
    student.finish()


def test_finish_refuses_an_undecided_student():
    student = make_student(make_teacher(tiny_facts()), layers={"choose": "kl", "count": 1})
    with pytest.raises(PlanError, match="no stage chose"):
        student.finish()


def test_finished_student_is_the_same_and_loads_strictly():
    teacher = make_teacher(tiny_facts())
    student = make_student(teacher, layers={"replace": [0, 2]})
    shake(student)
    batch = tokens(teacher.facts, 2, 33)
    before = logits(student, batch)
    student.finish()
    assert difference(logits(student, batch), before) < 1e-5
    options = DM2Options.model_validate({"layers": {"replace": [0, 2]}})
    again = DM2Target().build(teacher.facts, options, {}, device=CPU)
    again.module.load_state_dict(student.module.state_dict(), strict=True)
    assert torch.equal(logits(again, batch), logits(student, batch))


def test_solver_options_are_checked():
    student = make_student(make_teacher(tiny_facts()))
    with pytest.raises(UsageError, match=r"stage options\.fits"):
        DM2Target().solver(student, "blocks.1", {"fits": "init"})
    with pytest.raises(UsageError, match=r"stage options\.ridge"):
        DM2Target().solver(student, "blocks.1", {"ridge": -1.0})


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"rope": False, "layers": {"replace": [1]}}], ids=["all", "hybrid-plain"])
def test_export_with_static_shapes(options, tmp_path: Path):
    """Static shapes, few plain operators, low rank; prefill and decode reproduce the student."""
    onnx = pytest.importorskip("onnx")
    from xarch.export.run import export_profile

    student = make_student(make_teacher(tiny_facts()), **options)
    shake(student)
    student.finish()
    export_profile(
        student,
        DM2Target(),
        STATIC,
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


def test_the_benchs_teacher_is_the_teacher_in_the_graphs_of_a_student():
    teacher = make_teacher(tiny_facts())
    graphs = DM2Target().teacher_graphs(teacher, cpu, DecoderExport(prefill=[6], logits="all"))
    assert [graph.name for graph in graphs] == ["decode_1", "prefill_6"]
    assert {name.split("_")[1].split(".")[0] for g in graphs for name in list(g.inputs)[2:]} == {"cache"}
    batch = tokens(teacher.facts, 1, 6)
    states = [torch.zeros(1, *t.shape[1:2], 0, t.shape[3]) for t in list(graphs[1].inputs.values())[2:]]
    found = graphs[1].module(batch["input_ids"], torch.tensor([0]), *states)[0]
    assert difference(found, logits(teacher, batch)) < 1e-5


def test_divergence_is_that_of_now():
    teacher = make_teacher(tiny_facts())
    student = make_student(teacher, layers="all")
    divergence = DM2Target().divergence(student, [tokens(teacher.facts, 2, 16)])
    assert abs(divergence.measure()) < 1e-6
    weight = student.decoder.block(0).mlp.up.weight
    weight.data = weight.data + 0.5 * weight.data.roll(1, 0)
    assert divergence.measure() > 1e-5
    assert divergence.unit == "nats/token"
