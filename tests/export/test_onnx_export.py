"""Names, free dimensions and versions of a translated graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from xarch.contracts.export import ExportGraph
from xarch.errors import PlanError
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu


class Append(nn.Module):
    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        cache = torch.cat([cache, x], 1)
        return cache.sum(1), cache


def append_graph(**changes: object) -> ExportGraph:
    inputs = {"x": torch.randn(1, 2, 3), "cache.0": torch.randn(1, 4, 3)}
    graph = ExportGraph("append", Append(), inputs, ["total", "present_cache.0"], {"cache.0": {1: "past"}})
    return replace(graph, **changes)  # type: ignore[arg-type]


def test_names_arrive_as_given_and_an_empty_cache_works(tmp_path: Path) -> None:
    model = to_onnx(append_graph(), cpu)
    ir.save(model, tmp_path / "g.onnx")
    session = ort.InferenceSession(tmp_path / "g.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("x", [1, 2, 3]), ("cache.0", [1, "past", 3])]
    assert [o.name for o in session.get_outputs()] == ["total", "present_cache.0"]
    x = np.ones((1, 2, 3), np.float32)
    total, cache = session.run(None, {"x": x, "cache.0": np.zeros((1, 0, 3), np.float32)})
    np.testing.assert_array_equal(total, [[2, 2, 2]])
    np.testing.assert_array_equal(cache, x)


def test_versions_are_the_lowest_that_fit() -> None:
    model = to_onnx(append_graph(), cpu)
    assert (model.opset_imports, model.ir_version) == ({"": 18}, 8)
    newer = to_onnx(append_graph(), replace(cpu, max_opset=20, max_ir=10))
    assert (newer.opset_imports, newer.ir_version) == ({"": 20}, 9)


def test_ir_version_beyond_the_profile() -> None:
    with pytest.raises(PlanError, match="needs ONNX IR 8, profile 'cpu' supports at most 7"):
        to_onnx(append_graph(), replace(cpu, max_ir=7))


def test_a_single_tensor_is_one_output() -> None:
    graph = ExportGraph("relu", nn.ReLU(), {"x": torch.randn(2, 3)}, ["y"])
    assert [v.name for v in to_onnx(graph, cpu).graph.outputs] == ["y"]


def test_state_passed_through_and_unused_input_keep_the_interface(tmp_path: Path) -> None:
    class Through(nn.Module):
        def forward(self, x: Tensor, position: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, state

    inputs = {"x": torch.randn(2), "position": torch.zeros(1, dtype=torch.int64), "state": torch.randn(3)}
    ir.save(to_onnx(ExportGraph("g", Through(), inputs, ["y", "present_state"]), cpu), tmp_path / "g.onnx")
    session = ort.InferenceSession(tmp_path / "g.onnx")
    assert [i.name for i in session.get_inputs()] == ["x", "position", "state"]
    y, state = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_array_equal(state, inputs["state"])
    np.testing.assert_allclose(y, inputs["x"] + 1)


def test_free_dimension_that_the_module_fixes_is_an_error() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x + torch.ones(4, 3),)

    graph = ExportGraph("fixed", Fixed(), {"x": torch.randn(4, 3)}, ["y"], {"x": {0: "batch"}})
    with pytest.raises(PlanError, match=r"dimension 0 \(batch\) of 'x' became fixed"):
        to_onnx(graph, cpu)


def test_untranslatable_operator_is_named() -> None:
    class Eigen(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (torch.linalg.eigvals(x).real,)

    with pytest.raises(PlanError, match="linalg_eig"):
        to_onnx(ExportGraph("eigen", Eigen(), {"x": torch.randn(3, 3)}, ["y"]), cpu)


def test_unknown_dynamic_name() -> None:
    with pytest.raises(ValueError, match=r"\['kache'\] are not inputs"):
        to_onnx(append_graph(dynamic={"kache": {1: "past"}}), cpu)


def test_tables_of_translations_are_built_once_and_torch_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read, reads = ONNXRegistry.__dict__["from_torchlib"].__func__, []

    def counting(cls: type, **settings: object) -> object:
        reads.append(settings)
        return read(cls, **settings)

    counted = classmethod(counting)
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", counted)
    first = to_onnx(append_graph(), cpu)
    assert [node.op_type for node in to_onnx(append_graph(), cpu).graph] == [node.op_type for node in first.graph]
    assert len(reads) == 1
    assert ONNXRegistry.__dict__["from_torchlib"] is counted
