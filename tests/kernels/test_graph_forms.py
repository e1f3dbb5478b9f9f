"""Every form in which an operation is exported computes the same; the default is the operation as it runs in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from xarch import UsageError
from xarch.kernels import (
    FORMS,
    HashConfig,
    graph_form,
    graph_forms,
    hash_encode,
    in_runtime,
    octave_waves,
    prefix_sum,
)
from xarch.kernels.graph_forms import SINCE


class Under(nn.Module):
    """A call traced under graph forms."""

    def __init__(self, call: Callable[[Tensor], Tensor], forms: dict[str, str]) -> None:
        super().__init__()
        self.call, self.forms = call, forms

    def forward(self, x: Tensor) -> Tensor:
        with graph_forms(**self.forms):
            return self.call(x)


def exported(
    call: Callable[[Tensor], Tensor], forms: dict[str, str], x: Tensor, path: Path
) -> tuple[set[str], np.ndarray]:
    """Operators of the graph, and what onnxruntime makes of ``x``."""
    module = Under(call, forms).eval()
    torch.onnx.export(module, (x,), dynamo=True, input_names=["x"], opset_version=18, verbose=False).save(path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return {node.op_type for node in model.graph.node}, session.run(None, {"x": x.numpy()})[0]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS["waves"])
def test_octaves_of_sine_and_cosine(form: str, tmp_path: Path) -> None:
    x = 2 * torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) - 1
    octaves = 10
    operators, seen = exported(
        lambda x: torch.cat(octave_waves(x, octaves), dim=-1), {"waves": form}, x, tmp_path / "w.onnx"
    )
    angle = x[:, None].double() * 2.0 ** torch.arange(octaves)[:, None]
    assert np.abs(seen - torch.cat((angle.sin(), angle.cos()), dim=-1).numpy()).max() < 3e-7
    assert bool({"Sin", "Cos"} & operators) == (form == "sine")


@pytest.mark.parametrize("form", FORMS["prefix_sum"])
@pytest.mark.parametrize("length", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 64)), 7])
def test_prefix_sums(form: str, length: int, tmp_path: Path) -> None:
    x = torch.randn(5, length, generator=torch.Generator().manual_seed(0))
    operators, seen = exported(lambda x: prefix_sum(2 * x), {"prefix_sum": form}, x, tmp_path / "p.onnx")
    assert np.allclose(seen, (2 * x).double().cumsum(-1).numpy(), atol=1e-5)
    assert ("CumSum" in operators) == (form == "cumsum")


@pytest.mark.slow
@pytest.mark.parametrize("style", ["torch_ngp", "tcnn", "nerfstudio"])
def test_hash_levels_one_by_one_and_all_at_once(style: str, tmp_path: Path) -> None:
    config = HashConfig(levels=3, log2_size=10, finest=64, style=style)  # type: ignore[arg-type]
    table = torch.randn(config.rows, config.features, generator=torch.Generator().manual_seed(1))
    x = torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    wanted = hash_encode(x, table, config).numpy()
    nodes = {}
    for form in FORMS["hash"]:
        path = tmp_path / f"{form}.onnx"
        _, seen = exported(lambda x: hash_encode(x, table, config), {"hash": form}, x, path)
        assert np.abs(seen - wanted).max() < 1e-6
        nodes[form] = len(onnx.load(path).graph.node)
    assert nodes["batched"] < nodes["loop"] / 2


@pytest.mark.slow
def test_hash_sizes_that_are_no_power_of_two(tmp_path: Path) -> None:
    config = HashConfig(levels=3, log2_size=10, finest=64, sizes=(5000, 1000, 900))
    table = torch.randn(config.rows, config.features, generator=torch.Generator().manual_seed(1))
    x = torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    _, seen = exported(lambda x: hash_encode(x, table, config), {"hash": "batched"}, x, tmp_path / "h.onnx")
    assert np.abs(seen - hash_encode(x, table, config).numpy()).max() < 1e-6


def test_forms_nest_and_end() -> None:
    assert graph_form("grid") == "grid_sample"
    with graph_forms(grid="gather"), graph_forms(hash="batched"):
        assert (graph_form("grid"), graph_form("hash"), graph_form("waves")) == ("gather", "batched", "sine")
    assert graph_form("grid") == "grid_sample"
    for wrong in ({"grid": "nearest"}, {"planes": "gather"}):
        with pytest.raises(UsageError, match=r"nearest|planes"), graph_forms(**wrong):
            pass


def test_a_form_that_the_installed_runtime_lacks_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SINCE, "recurrence", (99, 0))
    in_runtime.cache_clear()
    try:
        with graph_forms(recurrence="runtime", attention="runtime"):
            assert (graph_form("recurrence"), graph_form("attention")) == ("standard", "runtime")
    finally:
        in_runtime.cache_clear()
