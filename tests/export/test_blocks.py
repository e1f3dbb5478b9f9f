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

from xarch.contracts.export import ExportGraph
from xarch.errors import PlanError
from xarch.export.blocks import packed, quantise_blocks
from xarch.export.check import check_file
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


def unpacked(parts: list[np.ndarray], bits: int, size: int) -> np.ndarray:
    data, scale = parts[0].astype(np.int64), parts[1]
    zero = np.full(scale.shape, 128)
    if bits == 4:
        data = np.stack([data & 15, data >> 4], -1).reshape(*data.shape[:2], size)
        zero = np.stack([parts[2] & 15, parts[2] >> 4], -1).reshape(len(scale), -1)[:, : scale.shape[1]]
    return ((data - zero[..., None]) * scale[..., None]).reshape(len(scale), -1)


@pytest.mark.parametrize(("bits", "size", "most"), [(4, 16, 0.07), (4, 32, 0.09), (8, 32, 0.006)])
def test_packed_weights_are_close_and_an_affine_grid_is_exact(bits: int, size: int, most: float) -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(6, 3 * size)).astype(np.float32)
    error = unpacked(packed(weight, bits, size), bits, size) - weight
    assert np.linalg.norm(error) <= most * np.linalg.norm(weight)
    if bits == 4:
        grid = generator.integers(0, 16, (6, 3, size))
        grid[..., 0], grid[..., 1] = 0, 15
        exact = ((grid - 5) * generator.uniform(0.5, 2, (6, 3, 1))).reshape(6, -1).astype(np.float32)
        np.testing.assert_allclose(unpacked(packed(exact, 4, size), 4, size), exact, rtol=1e-5)
    zeros = packed(np.zeros((2, size), np.float32), bits, size)
    assert not unpacked(zeros, bits, size).any()


@pytest.mark.parametrize(("bits", "most"), [(4, 0.2), (8, 0.02)])
def test_the_runtime_multiplies_by_them_and_a_tied_table_is_stored_once(tmp_path: Path, bits: int, most: float) -> None:
    graph = tied_graph()
    model = to_onnx(graph, cpu)
    assert quantise_blocks(model, bits) == 2
    with WeightStore(tmp_path / "weights.data") as store:
        externalise(model, store)
    ir.save(model, tmp_path / "tied.onnx")
    table = 96 * 64 * bits // 8
    assert store.saved >= table
    assert store.bytes < 3 * table + 3 * 4096
    ops = check_file(tmp_path / "tied.onnx", cpu_int4)
    assert ops["com.microsoft::MatMulNBits"] == 2
    assert ops["com.microsoft::GatherBlockQuantized"] == 1
    assert not {"Gemm", "MatMul", "Gather"} & set(ops)
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
