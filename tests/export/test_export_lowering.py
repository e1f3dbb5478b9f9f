"""Rewrites keep the numbers and leave one layout of every weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch.contracts.export import ExportGraph
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu


class Tied(nn.Module):
    """Embedding and head are one matrix; a linear layer with bias between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.mix = nn.Linear(12, 12)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        x = self.mix(self.embed(ids))
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (F.linear(x, self.embed.weight),)


def run(model: ir.Model, path: Path, *inputs: np.ndarray) -> np.ndarray:
    ir.save(model, path)
    session = ort.InferenceSession(path)
    return session.run(None, dict(zip((i.name for i in session.get_inputs()), inputs, strict=True)))[0]


@pytest.mark.parametrize(
    ("shape", "dynamic", "other"),
    [
        ((2,), {}, None),
        ((1, 5), {}, None),
        ((2, 3, 5), {}, None),
        ((2, 5), {0: "batch"}, (7, 5)),
        ((2, 5), {1: "length"}, (2, 0)),
    ],
    ids=["matrix", "sequence", "rank-4", "free-batch", "free-length-empty"],
)
def test_linear_layers_become_gemm_over_the_stored_weights(
    shape: tuple[int, ...], dynamic: dict[int, str], other: tuple[int, ...] | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Tied().requires_grad_(False)
    ids = torch.randint(40, shape)
    model = to_onnx(ExportGraph("g", module, {"ids": ids}, ["y"], {"ids": dynamic}), cpu)
    ops = [node.op_type for node in model.graph]
    assert ops.count("Gemm") == 2
    assert not {"MatMul", "Transpose", "Reciprocal"} & set(ops)
    matrices = [v.const_value for v in model.graph.initializers.values() if len(v.const_value.shape) == 2]  # type: ignore[union-attr]
    assert sorted(tuple(m.shape.numpy()) for m in matrices) == [(12, 12), (40, 12)]  # type: ignore[union-attr]
    for size in filter(None, (shape, other)):
        ids = torch.arange(int(np.prod(size))).reshape(size) % 40
        np.testing.assert_allclose(run(model, tmp_path / "g.onnx", ids.numpy()), module(ids)[0], rtol=1e-5, atol=1e-5)


def test_two_free_dimensions_keep_a_product_of_matrices(tmp_path: Path) -> None:
    module = Tied().requires_grad_(False)
    inputs = {"ids": torch.randint(40, (2, 5))}
    model = to_onnx(ExportGraph("g", module, inputs, ["y"], {"ids": {0: "batch", 1: "length"}}), cpu)
    assert "Gemm" not in [node.op_type for node in model.graph]
    ids = torch.randint(40, (3, 9))
    np.testing.assert_allclose(run(model, tmp_path / "g.onnx", ids.numpy()), module(ids)[0], rtol=1e-5, atol=1e-5)


def test_bias_that_is_used_twice_is_not_swallowed(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = F.linear(x, self.w)
            return y + self.b, y * self.b

    module = Twice().requires_grad_(False)
    x = torch.randn(1, 3, 4)
    model = to_onnx(ExportGraph("g", module, {"x": x}, ["sum", "product"]), cpu)
    ir.save(model, tmp_path / "g.onnx")
    outputs = ort.InferenceSession(tmp_path / "g.onnx").run(None, {"x": x.numpy()})
    for seen, expected in zip(outputs, module(x), strict=True):
        np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-5)


def test_chains_of_views_become_one_reshape(tmp_path: Path) -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            heads = x[:, 0].unflatten(-1, (2, 4)).unsqueeze(1).transpose(1, 2)
            return heads, (x[:, 0][:, None] + 1).squeeze(0), (cache + x).transpose(0, 1)

    inputs = {"x": torch.randn(1, 1, 8), "cache": torch.randn(3, 5, 8)}
    graph = ExportGraph("g", Views(), inputs, ["heads", "sum", "moved"], {"cache": {1: "past"}})
    model = to_onnx(graph, cpu)
    ops = sorted(node.op_type for node in model.graph)
    assert ops == ["Add", "Add", "Reshape", "Reshape", "Transpose"]
    ir.save(model, tmp_path / "g.onnx")
    session = ort.InferenceSession(tmp_path / "g.onnx")
    for past in (0, 5):
        given = {"x": inputs["x"], "cache": torch.randn(3, past, 8)}
        seen = session.run(None, {name: value.numpy() for name, value in given.items()})
        for got, expected in zip(seen, Views()(*given.values()), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6)
