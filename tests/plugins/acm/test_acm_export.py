"""Exported forms of an acm student (E16 of the specification)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.plugins.acm.acm_models import with_random_gates
from xarch import ExportGraph, PlanError
from xarch.export.check import check_file
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu, npu
from xarch_acm.answers import all_learners
from xarch_acm.budget_input import budget_cases
from xarch_acm.export import acm_graphs, executed, learners_of, static_model
from xarch_acm.filled import counts, ranks, rooms
from xarch_acm.module import Point
from xarch_acm.options import AcmExport
from xarch_acm.student import AcmStudent
from xarch_image.testing import image_batch


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> AcmStudent:
    made = with_random_gates(tmp_path_factory.mktemp("acm"))
    first, second = made.adaptive
    rows = [
        {
            "budget": 0.25,
            "shift": -0.2,
            "fixed": {first: 2, second: 0},
            "filled": {first: [0.5, 0.2, 0.2, 0.1], second: [0.6, 0.4, 0.0, 0.0]},
        },
        {"budget": 0.5, "shift": 0.0, "fixed": {first: 3, second: 1}},
    ]
    made.decide({"tables": rows})
    return made


def answer(model, images: torch.Tensor) -> torch.Tensor:
    batch = image_batch(model.facts, len(images)).replace(images=images)
    with torch.no_grad():
        return model.collect(batch, {"logits"})["logits"]


def run(
    graph: ExportGraph, profile, folder: Path, images: torch.Tensor, **more: np.ndarray
) -> tuple[np.ndarray, Counter[str]]:
    import onnx_ir
    import onnxruntime

    model = to_onnx(graph, profile)
    onnx_ir.save(model, folder / "model.onnx")
    check_file(folder / "model.onnx", profile)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    found = session.run(None, {session.get_inputs()[0].name: images.numpy(), **more})[0]
    return found, Counter(node.op_type for node in model.graph)


@pytest.mark.slow
def test_a_static_graph_has_no_gates_and_is_that_much_smaller(student, tmp_path):
    [graph] = acm_graphs(student, npu, AcmExport(budget=0.5))
    assert graph.variant == "static-50"
    images = graph.inputs["images"]
    found, ops = run(graph, npu, tmp_path, images)
    assert not ops.keys() & {"ArgMax", "NonZero", "Greater", "GreaterOrEqual", "ScatterND", "TopK"}
    assert np.allclose(found, answer(student.variants()["static-50"], images).numpy(), atol=1e-4)
    whole, cut = (FlopCounterMode(display=False) for _ in range(2))
    with whole, student.at(all_learners(student)):
        answer(student.inner, images)
    with cut:
        answer(static_model(student, "static-50"), images)
    share = executed(student, learners_of(student, "static-50"))
    assert share == pytest.approx(0.5)
    assert graph.metadata["acm"]["executed"] == pytest.approx(0.5)
    positions = 17
    mlps = 2 * positions * sum(m.cost * m.learners for m in student.adaptive.values())
    saved = whole.get_total_flops() - cut.get_total_flops()
    assert saved == pytest.approx(0.5 * mlps, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dynamic", "bucketed", "masked"])
def test_graphs_with_gates_compute_what_the_student_does(student, mode, tmp_path):
    own = mode != "bucketed"
    [graph] = acm_graphs(student, cpu, AcmExport(mode=mode, budget=0.25, budget_input=own))
    model = student.variants()[graph.variant]
    assert graph.variant == ("bucketed-25" if mode == "bucketed" else "gated-25")
    torch.manual_seed(5)
    images = torch.rand(5, 3, 32, 32)
    more = {"budget": graph.inputs["budget"].numpy()} if own else {}
    found, ops = run(graph, cpu, tmp_path, images, **more)
    assert np.allclose(found, answer(model, images).numpy(), atol=1e-4)
    if own:
        assert graph.metadata["acm"]["budgets"] == [0.25, 0.5, 0.75]
        # Budgets of the table and beyond it, and one in the middle of two.
        for budget, shift in ((0.25, -0.2), (0.5, 0.0), (0.1, -0.2), (0.375, -0.1)):
            found, _ = run(graph, cpu, tmp_path, images, budget=np.array([budget], np.float32))
            with student.at(dict.fromkeys(student.adaptive, Point(shift=shift))):
                assert np.allclose(found, answer(student, images).numpy(), atol=1e-4)
    assert ops["ArgMax"] == (0 if mode == "bucketed" else 2)
    assert (ops["NonZero"] == 8) == (mode == "dynamic")
    assert 0.1 < model.spent()["executed"] < 0.8


def test_learners_with_fixed_room_run_where_they_are_wanted_most(student):
    [graph] = acm_graphs(student, npu, AcmExport(mode="bucketed", budget=0.25))
    assert graph.variant == "bucketed-25"
    model, images = student.variants()[graph.variant], graph.inputs["images"]
    with torch.no_grad():
        assert torch.allclose(graph.module(images)[0], answer(model, images), atol=1e-4)
    # Of 17 positions 9, 4, 4 and 2 run the learners of the first module, 11 and 7 those of the second.
    gates = sum(m.gate_cost for m in student.adaptive.values()) / sum(
        m.cost * m.learners for m in student.adaptive.values()
    )
    assert model.spent()["executed"] == pytest.approx((9 + 4 + 4 + 2 + 11 + 7) / (2 * 4 * 17) + gates)


def test_a_budget_as_input_is_checked_at_every_budget(student, tmp_path):
    """Gates shifted by it, or fixed numbers by table: here in torch, a run's parity calls the file."""
    batch = image_batch(student.facts, 2)
    fixed = with_random_gates(tmp_path, gates="fixed")
    fixed.decide({"tables": [{"budget": 0.25, "shift": 0.0, "fixed": dict(zip(fixed.adaptive, (2, 0), strict=True))}]})
    for model, profile in ((student, cpu), (fixed, cpu), (fixed, npu)):
        [graph] = acm_graphs(model, profile, AcmExport(mode="masked", budget_input=True))
        assert graph.metadata["inputs"] == {"budget": 0.5}

        def call(name: str, inputs: dict[str, np.ndarray], graph: ExportGraph = graph) -> dict[str, np.ndarray]:
            made = graph.module(*(torch.from_numpy(inputs[name]) for name in graph.inputs))
            return {name: value.detach().numpy() for name, value in zip(graph.outputs, made, strict=True)}

        cases = list(budget_cases(model, graph, [batch]))
        assert [case.shape["percent"] for case in cases] == [25, 50, 75]
        answers = [case.drive(call)["logits"] for case in cases]
        for case, found in zip(cases, answers, strict=True):
            assert np.allclose(found, case.expected["logits"], atol=1e-4)
        assert np.abs(answers[0] - answers[1]).max() > 1e-4


@pytest.mark.slow
def test_fixed_room_takes_only_operators_of_accelerators(student, tmp_path):
    [graph] = acm_graphs(student, npu, AcmExport(mode="bucketed", budget=0.25))
    images = graph.inputs["images"]
    found, ops = run(graph, npu, tmp_path, images)
    assert np.allclose(found, answer(student.variants()["bucketed-25"], images).numpy(), atol=1e-4)
    assert not ops.keys() & {"TopK", "NonZero", "ScatterND", "ScatterElements"}


def test_every_point_is_a_graph_where_the_profile_has_its_form(student):
    names = [f"{kind}-{b}" for b in (25, 50, 75) for kind in ("gated", "static", "bucketed")]
    graphs = acm_graphs(student, cpu, AcmExport(every_point=True))
    assert [(g.name, g.variant) for g in graphs] == [("model", ""), *((f"model-{n}", n) for n in names)]
    assert {g.metadata["acm"]["mode"] for g in graphs if "gated" in g.name} == {"dynamic"}
    graphs = acm_graphs(student, npu, AcmExport(every_point=True))
    assert [g.variant for g in graphs] == ["static-50", *(n for n in names if n[0] != "g" and n != "static-50")]


def test_room_is_for_positions_that_want_most():
    scores = torch.full((1, 4, 3), -50.0)
    for position, choice in enumerate((1, 2, 0, 2)):
        scores[0, position, choice] = 0.0
    assert ranks(scores).tolist() == [[2, 0, 3, 1]]
    assert rooms([0.5, 0.26], 4) == [2, 2]
    assert counts(scores, [0.75, 0.25]).tolist() == [[1, 2, 0, 1]]


def test_modes_that_a_profile_or_student_does_not_have(student, tmp_path):
    with pytest.raises(PlanError, match=r"shapes depend on values \(NonZero") as refused:
        acm_graphs(student, npu, AcmExport(mode="dynamic"))
    assert "static_budget" in str(refused.value.hint)
    fixed = with_random_gates(tmp_path, gates="fixed")
    for mode in ("dynamic", "masked", "bucketed"):
        with pytest.raises(PlanError, match="gates") as refused:
            acm_graphs(fixed, cpu, AcmExport(mode=mode))
        assert "static_budget" in str(refused.value.hint)
    assert acm_graphs(fixed, cpu, AcmExport())[0].variant == "static-50"
    for profile, mode in ((cpu, "static_budget"), (npu, "auto"), (npu, "bucketed")):
        with pytest.raises(PlanError, match=r"a graph of mode \w+ has its budget built in") as refused:
            acm_graphs(student, profile, AcmExport(mode=mode, budget=0.5, budget_input=True))
        assert "every_point=true" in str(refused.value.hint)
    with pytest.raises(PlanError, match=r"no operating point at 0\.4; its budgets are 0\.25, 0\.5, 0\.75"):
        acm_graphs(student, cpu, AcmExport(mode="static_budget", budget=0.4))
