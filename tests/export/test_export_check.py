"""Operators, versions, shapes and domains against a profile; facts for ``xarch inspect``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from xarch.contracts.export import Profile
from xarch.errors import PlanError, UsageError
from xarch.export.check import check_file, inspect_onnx
from xarch.export.profiles import cpu
from xarch.export.run import ExportResult


def write(
    path: Path, *, op: str = "Relu", domain: str = "", shape: tuple[object, ...] = (2, 3), opset: int = 18
) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain=domain)], "g", [x], [y])
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


def test_a_plain_graph_passes(tmp_path: Path) -> None:
    assert check_file(write(tmp_path / "m.onnx"), cpu) == {"Relu": 1}


@pytest.mark.parametrize(
    ("graph", "profile", "message"),
    [
        ({}, {"forbidden_ops": frozenset({"Relu"})}, "operator Relu is forbidden"),
        ({}, {"allowed_ops": frozenset({"MatMul"})}, "operator Relu is not in the profile"),
        ({"domain": "com.microsoft", "op": "QuickGelu"}, {}, "com.microsoft::QuickGelu is not a standard operator"),
        ({}, {"max_opset": 17}, "opset 18, at most 17"),
        ({}, {"max_ir": 7}, "IR version 8, at most 7"),
        ({"shape": ("batch", 3)}, {"static": True}, "x has free dimensions batch"),
        ({"shape": (1, 1, 1, 1, 2, 3)}, {"max_rank": 5}, "x has 6 dimensions, at most 5"),
    ],
)
def test_what_a_profile_does_not_allow(graph: dict, profile: dict, message: str, tmp_path: Path) -> None:
    limited = replace(cpu, **profile)
    with pytest.raises(PlanError, match=message) as caught:
        check_file(write(tmp_path / "m.onnx", **graph), limited)
    assert "m.onnx does not fit the export profile 'cpu'" in caught.value.what


def test_allowed_operators_pass(tmp_path: Path) -> None:
    limited = replace(cpu, allowed_ops=frozenset({"Relu"}), static=True, max_rank=2)
    check_file(write(tmp_path / "m.onnx"), limited)


def test_control_flow_is_forbidden_on_cpu_even_inside_itself(tmp_path: Path) -> None:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "b", [], [y])
    inner = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    outer_branch = helper.make_graph([inner], "o", [], [y])
    outer = helper.make_node("If", ["c"], ["y"], then_branch=outer_branch, else_branch=branch)
    inputs = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
    ]
    model = helper.make_model(
        helper.make_graph([outer], "g", inputs, [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(PlanError, match="operator If is forbidden"):
        check_file(tmp_path / "m.onnx", cpu)
    assert inspect_onnx(tmp_path / "m.onnx")["operators"] == {"Relu": 3, "If": 2}


def test_wrong_types_are_found_by_the_full_check(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="not a valid ONNX model"):
        check_file(tmp_path / "m.onnx", cpu)


def test_profile_is_data() -> None:
    assert isinstance(cpu, Profile)
    assert (cpu.max_opset, cpu.max_ir, cpu.static) == (18, 8, False)


def test_inspect_shows_what_a_user_needs(exported: tuple[Path, ExportResult]) -> None:
    facts = inspect_onnx(exported[0] / "step_4.onnx")
    assert facts["inputs"]["input_ids"] == {"type": "int64", "shape": [1, 4]}
    assert facts["inputs"]["cache"] == {"type": "float", "shape": [1, "past", 32]}
    assert list(facts["outputs"]) == ["logits", "present_h", "present_cache"]
    assert facts["opset"] == {"ai.onnx": 18}
    assert facts["ir"] == 8
    assert facts["producer"].startswith("xarch ")
    assert facts["external_weight_bytes"] == {"student.onnx.data": 4 * 300 * 32 + 4 * 32 * 32}
    assert facts["metadata"]["xarch.profile"] == "cpu"
    assert facts["nodes"] == sum(facts["operators"].values())
