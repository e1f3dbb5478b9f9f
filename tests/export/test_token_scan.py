"""A step for every token: repeated in torch, one Scan in ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from xarch.contracts.chain import Chain, Link
from xarch.contracts.export import ExportGraph
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu, openvino
from xarch.kernels.token_scan import over_tokens


class Leaky(nn.Module):
    """h = h / 2 + x, rotated by one place; y = rate * (h + table)."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.rand(4), requires_grad=False)

    def forward(self, x_BLC: Tensor, held_BC: Tensor) -> tuple[Tensor, Tensor]:
        def step(x_BC: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            table_C = torch.tensor([1.0, 2.0, 3.0, 4.0])
            after_BC = 0.5 * state[0] + x_BC
            after_BC = torch.cat([after_BC[:, 1:], after_BC[:, :1]], 1)
            return after_BC + table_C, (after_BC,)

        y_BLC, state = over_tokens(step, (x_BLC,), (held_BC,))
        return y_BLC * self.rate, state[0]


def graph() -> ExportGraph:
    torch.manual_seed(0)
    owner = nn.ModuleList([Leaky(), Leaky()])
    links = [Link(one, [f"x{i}", f"held.{i}"], [f"x{i + 1}", f"new.{i}"]) for i, one in enumerate(owner)]
    chain = Chain(owner, links, inputs=["x0", "held.0", "held.1"], outputs=["x2", "new.0", "new.1"])
    inputs = {"x": torch.randn(2, 5, 4), "held.0": torch.randn(2, 4), "held.1": torch.randn(2, 4)}
    return ExportGraph("leaky", chain.eval(), inputs, ["y", "new.0", "new.1"])


def test_one_scan_a_link_gives_what_the_loop_gives(tmp_path: Path) -> None:
    one = graph()
    model = to_onnx(one, cpu)
    assert [node.op_type for node in model.graph].count("Scan") == 2
    assert "Scan" not in {node.op_type for node in to_onnx(one, openvino).graph}
    ir.save(model, tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx")
    found = session.run(None, {name: value.numpy() for name, value in one.inputs.items()})
    with torch.no_grad():
        wanted = one.module(*one.inputs.values())
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)
