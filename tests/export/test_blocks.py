"""Weights in blocks of few bits: what the runtime computes with them, and bytes stored once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from xarch.contracts.export import Divergence, ExportGraph
from xarch.errors import PlanError
from xarch.export.bits import choose, widened
from xarch.export.blocks import quantise_blocks
from xarch.export.check import check_file
from xarch.export.grids import affine, packed4, packed8, restored4
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu, cpu_int4
from xarch.export.run import export_profile
from xarch.export.weights import WeightStore, externalise


class Tied(nn.Module):
    """Embedding, a layer with a bias, and the embedding again as a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer = nn.Embedding(96, 64), nn.Linear(64, 64)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        x = torch.tanh(self.layer(self.embed(ids)))
        return ((x.flatten(0, 1) @ self.embed.weight.T).unflatten(0, ids.shape),)


def tied_graph() -> ExportGraph:
    module = Tied().eval().requires_grad_(False)
    return ExportGraph("tied", module, {"ids": torch.randint(0, 96, (2, 5))}, ["logits"])


def unpacked(weight: np.ndarray, size: int) -> np.ndarray:
    """What the 4-bit form of a weight multiplies x by."""
    return restored4(packed4(weight, size), weight.shape[1], size)


@pytest.mark.parametrize(("size", "most"), [(16, 0.07), (32, 0.085)])
def test_four_bits_are_close_and_weights_on_a_grid_with_any_offset_lose_almost_nothing(size: int, most: float) -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(6, 3 * size)).astype(np.float32)
    error = np.linalg.norm(unpacked(weight, size) - weight) / np.linalg.norm(weight)
    assert error <= most
    grid = generator.integers(0, 16, (6, 3, size))
    grid[..., 0], grid[..., 1] = 0, 15
    exact = (grid - generator.uniform(3, 12, (6, 3, 1))) * generator.uniform(0.5, 2, (6, 3, 1))
    exact = exact.reshape(6, -1).astype(np.float32)
    made = affine(exact, size)
    found = made.integers * made.scale[..., None] + made.offset[..., None]
    np.testing.assert_allclose(found.reshape(exact.shape), exact, rtol=1e-4, atol=1e-4)
    found = np.linalg.norm(unpacked(exact, size) - exact)
    assert found <= 0.01 * np.linalg.norm(exact)
    assert not unpacked(np.zeros((2, size), np.float32), size).any()


def test_eight_bits_are_close() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    data, scale = packed8(weight, 32)
    found = ((data.astype(np.float32) - 128) * scale[..., None]).reshape(6, -1)
    assert np.linalg.norm(found - weight) <= 0.006 * np.linalg.norm(weight)


def test_bits_are_widened_kind_by_kind_until_the_divergence_is_small() -> None:
    costs = {"a": 0.5, "b": 0.04, "c": 0.3, "d": 0.001}
    asked: list[set[str]] = []

    def measure(narrow: set[str]) -> float:
        asked.append(narrow)
        return sum(costs[kind] for kind in narrow)

    weights = dict.fromkeys(costs, 10)
    wide, figures = widened(weights, measure, 0.05)
    assert (wide, figures["chosen"]) == (["a", "c"], pytest.approx(0.041))
    # of two that cost the same, the one with more weights keeps few bits
    assert widened({**weights, "a": 100}, measure, 0.6)[0] == ["c"]
    assert widened(weights, measure, 0.0)[0] == ["a", "c", "b", "d"]
    asked.clear()
    assert widened(weights, measure, 1.0)[0] == []
    assert len(asked) == 1


def test_what_diverges_when_rounded_has_eight_bits_and_the_student_keeps_its_weights(tmp_path: Path) -> None:
    graph = replace(tied_graph(), weight_only=True)
    layer = graph.module.layer
    before = layer.weight.clone()
    wanted = graph.module(graph.inputs["ids"])[0]

    def measure() -> float:
        return float((graph.module(graph.inputs["ids"])[0] - wanted).norm() / wanted.norm())

    for most, bits in ((0.001, 8), (0.5, 4)):
        model = to_onnx(graph, cpu)
        choice = choose({"tied": model}, [graph], Divergence(measure, most))
        assert choice.wide == (frozenset({"layer.weight"}) if bits == 8 else frozenset())
        assert torch.equal(layer.weight, before)
        quantise_blocks(model, 4, choice.wide)
        made = [n for n in model.graph if n.op_type == "MatMulNBits"]
        assert sorted(n.attributes["bits"].as_int() for n in made) == sorted([bits, 8])
        assert choice.figures["narrow"] > 0.001


@pytest.mark.parametrize(("bits", "most"), [(4, 0.2), (8, 0.02)])
def test_the_runtime_multiplies_by_them_and_a_tied_table_is_stored_once(tmp_path: Path, bits: int, most: float) -> None:
    graph = tied_graph()
    model = to_onnx(graph, cpu)
    assert quantise_blocks(model, bits) == 2
    with WeightStore(tmp_path / "weights.data") as store:
        externalise(model, store)
    ir.save(model, tmp_path / "tied.onnx")
    # tables have 8 bits in any case
    table = 96 * 64
    assert store.saved >= table
    assert store.bytes < 3 * table + 4 * 4096
    ops = check_file(tmp_path / "tied.onnx", cpu_int4)
    assert ops["com.microsoft::MatMulNBits"] == 2
    assert ops["com.microsoft::GatherBlockQuantized"] == 1
    # with 4 bits the sums of x's blocks
    assert ops.get("MatMul", 0) == (1 if bits == 4 else 0)
    assert not {"Gemm", "Gather"} & set(ops)
    with pytest.raises(PlanError, match="not a standard operator"):
        check_file(tmp_path / "tied.onnx", cpu)
    session = onnxruntime.InferenceSession(tmp_path / "tied.onnx")
    found = session.run(None, {"ids": graph.inputs["ids"].numpy()})[0]
    wanted = graph.module(graph.inputs["ids"])[0].numpy()
    assert np.linalg.norm(found - wanted) <= most * np.linalg.norm(wanted)


def test_the_products_of_a_float_graph_are_found_by_the_runtimes_own_quantiser(tmp_path: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    graph = replace(tied_graph(), weight_only=True)
    ir.save(to_onnx(graph, cpu), tmp_path / "float.onnx")
    model = onnx.load(tmp_path / "float.onnx")
    # the head reads the table that the embedding reads, so it keeps the other form
    assert sorted(n.op_type for n in model.graph.node if n.op_type in ("MatMul", "Gemm")) == ["Gemm", "MatMul"]
    session = onnxruntime.InferenceSession(tmp_path / "float.onnx")
    found = session.run(None, {"ids": graph.inputs["ids"].numpy()})[0]
    np.testing.assert_allclose(found, graph.module(graph.inputs["ids"])[0].numpy(), rtol=1e-4, atol=1e-5)
    quantiser = MatMulNBitsQuantizer(model, bits=4, block_size=32, is_symmetric=True)
    quantiser.process()
    assert [n.op_type for n in quantiser.model.model.graph.node].count("MatMulNBits") == 1


def test_four_bits_need_a_runtime_that_reads_them(tmp_path: Path) -> None:
    from tests.export.export_models import RecurrentTarget, held_out, make_student

    profile = replace(cpu, name="four", dtype="int4")
    with pytest.raises(PlanError, match=r"four: a runtime without com\.microsoft::"):
        export_profile(
            make_student(), RecurrentTarget(), profile, options={}, batches=held_out(), out=tmp_path / "out",
            metadata={}, say=lambda text: None,
        )  # fmt: skip
