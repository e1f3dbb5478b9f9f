"""The torch backends under torch.export and ONNX: static length, states in and out, operators an NPU profile allows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from xarch.kernels import (
    causal_conv1d,
    causal_conv1d_step,
    causal_conv_with_state,
    gated_delta,
    gated_delta_step,
    graph_form,
    graph_forms,
    linear_attention,
    ssd,
    ssd_step,
)

FORBIDDEN = {"Loop", "Scan", "If", "CumSum", "Einsum", "Trilu", "ScatterND", "NonZero", "Where"}
NAMES = ["u", "log_a", "conv_state", "ssm_state"]


class Prefill(nn.Module):
    """Convolution, then SSD, as a student mixer uses them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.groups = groups
        channels = (4 + 2 * groups) * 8
        self.weight = nn.Parameter(torch.randn(channels, 4) / 4)
        self.bias = nn.Parameter(torch.randn(channels))
        self.D = nn.Parameter(torch.randn(4))

    def split(self, y: Tensor) -> list[Tensor]:
        parts = y.split([32, 8 * self.groups, 8 * self.groups], -1)
        return [part.unflatten(-1, (-1, 8)) for part in parts]

    def forward(self, u: Tensor, log_a: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, ...]:
        y, conv_state = causal_conv1d(u, self.weight, self.bias, initial_state_BCJ=conv_state, return_final_state=True)
        x, B, C = self.split(y)
        y, ssm_state = ssd(x, log_a, B, C, self.D, initial_state_BHPN=ssm_state, return_final_state=True, chunk_size=16)
        return y, conv_state, ssm_state

    def inputs(self, length: int, batch: int = 1) -> tuple[Tensor, ...]:
        channels = self.weight.shape[0]
        return (
            torch.randn(batch, length, channels),
            -torch.rand(batch, length, 4) * 3,
            torch.randn(batch, channels, 3),
            torch.randn(batch, 4, 8, 8),
        )


class Decode(Prefill):
    def forward(self, u: Tensor, log_a: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, ...]:
        y, conv_state = causal_conv1d_step(u, self.weight, self.bias, conv_state)
        x, B, C = self.split(y)
        y, ssm_state = ssd_step(x, log_a, B, C, self.D, ssm_state)
        return y, conv_state, ssm_state

    def inputs(self, length: int = 1, batch: int = 1) -> tuple[Tensor, ...]:
        u, log_a, *states = super().inputs(1, batch)
        return u[:, 0], log_a[:, 0], *states


@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
@pytest.mark.parametrize(("batch", "length", "groups"), [(1, 16, 4), (2, 37, 1), (1, 1, 2)])
def test_prefill_exports(batch, length, groups, grad, error):
    model = Prefill(groups).eval()
    inputs = model.inputs(length, batch)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(model, inputs)
    other = model.inputs(length, batch)
    for value, truth in zip(program.module()(*other), model(*other), strict=True):
        assert error(value, truth) <= 1e-5
    assert not any("cumsum" in str(node.target) for node in program.graph.nodes)


def test_decode_exports(error):
    model = Decode(2).eval()
    program = torch.export.export(model, model.inputs())
    other = model.inputs()
    for value, truth in zip(program.module()(*other), model(*other), strict=True):
        assert error(value, truth) <= 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [pytest.param(Prefill, marks=pytest.mark.slow), Decode])
def test_onnx_runs_with_plain_operators(kind, tmp_path: Path, error):
    model = kind(2).eval()
    inputs = model.inputs(32)
    path = tmp_path / "graph.onnx"
    with torch.no_grad():
        torch.onnx.export(model, inputs, path, dynamo=True, opset_version=18, input_names=NAMES, verbose=False)
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert not FORBIDDEN.intersection(operators)
    other = model.inputs(32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: t.numpy() for name, t in zip(NAMES, other, strict=True)})
    for value, truth in zip(outputs, model(*other), strict=True):
        assert error(torch.from_numpy(value), truth) <= 1e-5


class Delta(nn.Module):
    """As many states as queries of a state, which onnxscript's optimiser once confused."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, ...]:
        operands = (q, k, v, log_a, beta)
        if q.shape[1] == 1:
            y, state = gated_delta_step(*(t[:, 0] for t in operands), state)
            return y[:, None], state
        return tuple(gated_delta(*operands, initial_state_BKPN=state, return_final_state=True, chunk_size=16))

    def inputs(self, length: int) -> tuple[Tensor, ...]:
        k = nn.functional.normalize(torch.randn(1, length, 2, 8), dim=-1)
        gates = (-torch.rand(1, length, 2), torch.rand(1, length, 2))
        return torch.randn(1, length, 4, 8), k, torch.randn(1, length, 2, 6), *gates, torch.randn(1, 2, 6, 8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [1, 20])
def test_onnx_runs_the_delta_rule_with_plain_operators(length, tmp_path: Path, error):
    model, path, names = Delta().eval(), tmp_path / "graph.onnx", ["q", "k", "v", "log_a", "beta", "state"]
    with torch.no_grad():
        program = torch.onnx.export(
            model, model.inputs(length), dynamo=True, opset_version=18, input_names=names, verbose=False
        )
    program.save(path)
    assert not (FORBIDDEN - {"Where"}).intersection(node.op_type for node in onnx.load(path).graph.node)
    other = model.inputs(length)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: t.numpy() for name, t in zip(names, other, strict=True)})
    for value, truth in zip(outputs, model(*other), strict=True):
        assert error(torch.from_numpy(value), truth) <= 1e-5


class Recurrent(nn.Module):
    """A convolution, a recurrence with a scalar decay and a gated delta rule; 4 query heads share 2 states."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(12, 4) / 4), nn.Parameter(torch.randn(12))

    def forward(
        self, u: Tensor, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, beta: Tensor, conv: Tensor, state: Tensor
    ) -> tuple[Tensor, ...]:
        if graph_form("recurrence") == "runtime":
            taps = (self.weight, self.bias)
            return (
                *causal_conv_with_state(u, *taps, conv),
                *linear_attention(q, k, v, log_a, state),
                *linear_attention(q, k, v, log_a, state, beta),
            )
        y, after = causal_conv1d(
            u, self.weight, self.bias, initial_state_BCJ=conv, return_final_state=True, backend="naive"
        )
        given = {"return_final_state": True, "backend": "naive"}
        x, log_a_4, wide = (t.repeat_interleave(2, 2) for t in (v, log_a, state.transpose(1, 2)))
        scan, h = ssd(
            x, log_a_4, k.repeat_interleave(2, 2), q, None, initial_state_BHPN=wide.transpose(1, 2).mT, **given
        )
        rule, s = gated_delta(q, k, v, log_a, beta, initial_state_BKPN=state.mT, **given)
        return y, after, scan, h[:, ::2].mT, rule, s.mT

    def inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        k = nn.functional.normalize(torch.randn(batch, length, 2, 8), dim=-1)
        gates = (-torch.rand(batch, length, 2), torch.rand(batch, length, 2))
        u, conv = torch.randn(batch, length, 12), torch.randn(batch, 12, 3)
        return (
            u,
            torch.randn(batch, length, 4, 8),
            k,
            torch.randn(batch, length, 2, 6),
            *gates,
            conv,
            torch.randn(batch, 2, 8, 6),
        )


class InRuntime(Recurrent):
    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        with graph_forms(recurrence="runtime"):
            return super().forward(*given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 37)])
def test_recurrences_as_operators_of_the_runtime(batch: int, length: int, tmp_path: Path, error) -> None:
    names = ["u", "q", "k", "v", "log_a", "beta", "conv", "state"]
    inputs = Recurrent().inputs(batch, length)
    with torch.no_grad():
        program = torch.onnx.export(
            InRuntime().eval(), inputs, dynamo=True, opset_version=18, input_names=names, verbose=False
        )
    program.save(tmp_path / "graph.onnx")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node)
    assert operators["LinearAttention"] == 2
    assert operators["CausalConvWithState"] == 1
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {name: t.numpy() for name, t in zip(names, inputs, strict=True)})
    with torch.no_grad():
        wanted = Recurrent()(*inputs)
    for value, truth in zip(found, wanted, strict=True):
        assert tuple(value.shape) == tuple(truth.shape)
        assert error(torch.from_numpy(value), truth) <= 1e-5
