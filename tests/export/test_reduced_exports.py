"""Graphs for accelerators: older opset, 32-bit indices, half precision and 8-bit weights, each against float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from tests.export.export_models import PlainStudent, PlainTarget
from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph, Profile
from xarch.errors import DivergedError, ParityError, PlanError
from xarch.export import parity
from xarch.export.calibration import calibrate
from xarch.export.cases import single_graph_cases
from xarch.export.check import violations
from xarch.export.half import halve
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu, npu, npu_fp16, npu_int8
from xarch.export.quantise import quantise, symmetric
from xarch.export.run import ExportResult, export_profile
from xarch.export.session import EXACT_SUMS, open_session, saturates


class Layers(nn.Module):
    """A small network between arithmetic that half precision could not carry: x is read at 300 times its value, and the
    result is an exponential."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(24, 32), nn.Linear(32, 3)
        self.table = nn.Parameter(torch.randn(64, 24))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        place = (x * 300).floor()
        index = (place[:, 0].long() % 8) * 8 + place[:, 1].long() % 8
        seen = torch.sin(x * 300).repeat(1, 12) + self.table[index]
        y = self.last(torch.relu(self.first(seen)))
        return torch.exp(y), y.amax(dim=-1)


def layers(profile: Profile) -> ExportGraph:
    x = torch.rand(50, 2, generator=torch.Generator().manual_seed(3))
    return ExportGraph("layers", Layers().eval().requires_grad_(False), {"x": x}, ("y", "best"))


MOD = replace(npu, allowed_ops=(npu.allowed_ops or frozenset()) | {"Mod"})
"""The test's network has a remainder; that the npu profile refuses it is a test of its own."""


def run(model: ir.Model, path: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Named outputs, with the runtime's optimisations off: what the graph says, not what a runtime makes of it."""
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def expected(graph: ExportGraph) -> dict[str, np.ndarray]:
    values = graph.module(*graph.inputs.values())
    return {name: value.numpy() for name, value in zip(graph.outputs, values, strict=True)}


def fits(model: ir.Model, profile: Profile) -> list[str]:
    return violations(onnx.shape_inference.infer_shapes(ir.to_proto(model)), profile)


def types(model: ir.Model, name: str) -> list[ir.DataType]:
    return [value.dtype for node in model.graph if node.op_type == name for value in node.outputs if value.dtype]


def test_the_accelerator_profile_gets_opset_17_and_narrow_indices(tmp_path: Path) -> None:
    graph = layers(MOD)
    model = to_onnx(graph, MOD)
    assert (model.opset_imports[""], model.ir_version) == (17, 8)
    assert fits(model, MOD) == []
    seen = run(model, tmp_path / "m.onnx", x=graph.inputs["x"].numpy())
    for name, wanted in expected(graph).items():
        assert np.allclose(seen[name], wanted, rtol=1e-5, atol=1e-6)
    wide = to_onnx(graph, cpu)
    assert any("64-bit integers" in problem for problem in fits(wide, MOD))
    assert any("opset 18, at most 17" in problem for problem in fits(wide, MOD))


def test_what_a_profile_lacks_is_named() -> None:
    problems = fits(to_onnx(layers(npu), npu), npu)
    assert "operator Mod is not in the profile" in problems


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda x: x.amax(1) + x.amin(1), (4, 6)),
        (lambda x: torch.cat(x.split(2, dim=1)[::-1], dim=1), (4, 6)),
        (lambda x: torch.nn.functional.pad(x, (1, 2)), (4, 6)),
        (lambda x: x.mean(dim=(0, 1)), (4, 6)),
        (lambda x: torch.logsumexp(x, dim=1), (4, 6)),
    ],
    ids=["extrema", "split", "pad", "mean", "logsumexp"],
)
def test_operators_that_changed_with_opset_18(
    module: Callable[[Tensor], Tensor], shape: tuple[int, ...], tmp_path: Path
) -> None:
    profile = replace(cpu, max_opset=17)
    graph = ExportGraph("g", Wrapped(module), {"x": torch.randn(shape)}, ["y"])
    model = to_onnx(graph, profile)
    assert model.opset_imports[""] == 17
    seen = run(model, tmp_path / "m.onnx", x=graph.inputs["x"].numpy())
    assert np.allclose(seen["y"], module(graph.inputs["x"]).numpy(), atol=1e-6)


def test_an_operator_without_an_older_form_is_refused() -> None:
    graph = ExportGraph("g", Wrapped(lambda x: x ^ 5), {"x": torch.arange(6)}, ["y"])
    with pytest.raises(PlanError, match="BitwiseXor of y has no form in opset 17"):
        to_onnx(graph, replace(cpu, max_opset=17))


def test_integers_of_graph_inputs_are_cast_and_large_constants_are_refused(tmp_path: Path) -> None:
    profile = replace(cpu, index_dtype="int32")
    table = torch.randn(40, 3)
    graph = ExportGraph("g", Wrapped(lambda i: table[i * 2 + 1]), {"i": torch.arange(6)}, ["y"])
    model = to_onnx(graph, profile)
    assert fits(model, profile) == []
    assert np.array_equal(run(model, tmp_path / "m.onnx", i=np.arange(6))["y"], table[1:12:2].numpy())
    large = ExportGraph("g", Wrapped(lambda i: table[(i * 2**40) % 40]), {"i": torch.arange(6)}, ["y"])
    with pytest.raises(PlanError, match=f"{2**40}, more than 32 bits"):
        to_onnx(large, profile)


def test_an_operator_of_64_bit_integers_keeps_them_and_is_named() -> None:
    profile = replace(cpu, index_dtype="int32")
    square = torch.randn(5, 5)
    graph = ExportGraph("g", Wrapped(lambda x: square[x.long(), (2 * x).long()]), {"x": torch.rand(6)}, ["y"])
    model = to_onnx(graph, profile)
    assert "GatherND" in {node.op_type for node in model.graph}
    assert any("64-bit integers" in problem for problem in fits(model, profile))


def test_places_that_an_operator_gives_are_read_in_32_bits(tmp_path: Path) -> None:
    profile = replace(cpu, index_dtype="int32")
    graph = ExportGraph("g", Wrapped(lambda x: x.gather(1, x.topk(3, -1).indices)), {"x": torch.randn(2, 7)}, ["y"])
    model = to_onnx(graph, profile)
    assert "TopK" in {node.op_type for node in model.graph}
    assert fits(model, profile) == []
    x = graph.inputs["x"]
    assert np.array_equal(run(model, tmp_path / "m.onnx", x=x.numpy())["y"], x.topk(3, -1).values.numpy())
    # places that leave the graph stay what they are, and are named
    shown = ExportGraph("g", Wrapped(lambda x: x.topk(3, -1).indices), {"x": x}, ["places"])
    assert any("64-bit integers" in problem for problem in fits(to_onnx(shown, profile), profile))


def test_numbers_picked_from_a_table_are_picked_in_32_bits(tmp_path: Path) -> None:
    profile = replace(cpu, index_dtype="int32")
    table, rows = torch.tensor([[4, 0, 2], [1, 3, 5]]), torch.randn(6, 2)
    graph = ExportGraph(
        "g", Wrapped(lambda x: rows[table.gather(1, x.topk(2, -1).indices).flatten()]), {"x": torch.randn(2, 3)}, ["y"]
    )
    model = to_onnx(graph, profile)
    assert fits(model, profile) == []
    x = graph.inputs["x"]
    wanted = rows[table.gather(1, x.topk(2, -1).indices).flatten()]
    assert np.array_equal(run(model, tmp_path / "m.onnx", x=x.numpy())["y"], wanted.numpy())


def test_half_precision_is_for_weights_and_products(tmp_path: Path) -> None:
    graph = layers(MOD)
    model = to_onnx(graph, MOD)
    full = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    assert halve(model) == 2
    assert types(model, "Gemm") == [ir.DataType.FLOAT16] * 2
    assert types(model, "Relu") == [ir.DataType.FLOAT16]
    for op in ("Sin", "Floor", "Exp", "ReduceMax"):
        assert set(types(model, op)) <= {ir.DataType.FLOAT}, op
    left = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    assert left < 0.55 * full
    seen = run(model, tmp_path / "m.onnx", x=graph.inputs["x"].numpy())
    for name, wanted in expected(graph).items():
        assert seen[name].dtype == np.float32
        assert 0 < np.abs(seen[name] - wanted).max() / np.abs(wanted).max() < 5e-3


def test_a_weight_that_half_precision_cannot_hold_is_refused() -> None:
    graph = layers(MOD)
    with torch.no_grad():
        graph.module.first.weight[0, 0] = 1e5  # type: ignore[union-attr,index]
    with pytest.raises(PlanError, match="reaches 1e\\+05, float16 ends at 65504"):
        halve(to_onnx(graph, MOD))


def test_eight_bits_a_weight_and_a_scale_a_channel(tmp_path: Path) -> None:
    graph = layers(MOD)
    model = to_onnx(graph, MOD)
    (tmp_path / "calibration").mkdir()
    ranges = calibrate(
        {"layers": model}, single_graph_cases([graph]), tmp_path / "calibration", cpu.provider, threads=1
    )
    assert "QuantizeLinear" not in {node.op_type for node in model.graph}, "calibration changed the graph"
    assert set(ranges) == {"first.weight", "last.weight"}
    assert ranges["last.weight"][0] == 0 < ranges["last.weight"][1], "a ReLU stands before it"
    assert quantise(model, ranges) == 2
    stored = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    assert {t.shape.numpy() for t in stored if t.dtype == ir.DataType.INT8 and len(t.shape) == 2} == {
        (32, 24), (3, 32), (64, 24)
    }  # fmt: skip
    assert not [t for t in stored if t.dtype == ir.DataType.FLOAT and len(t.shape) == 2]
    assert {t.shape.numpy() for t in stored if t.dtype == ir.DataType.INT32 and len(t.shape) == 1} >= {(32,), (3,)}
    seen = run(model, tmp_path / "m.onnx", x=graph.inputs["x"].numpy())
    for name, wanted in expected(graph).items():
        assert 0 < np.abs(seen[name] - wanted).max() / np.abs(wanted).max() < 0.05
    problems = fits(model, MOD)
    assert problems == []


class _Twice(nn.Module):
    """A weight that is read twice, with a channel that is a bias alone; and a sum by a matrix of ones, of numbers that
    8 bits would round."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)
        self.layer.weight.data[2] = 0.0
        self.register_buffer("below", torch.ones(4, 4).tril())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.layer(x)) + self.layer(x.square())
        return y, (1e3 * x[:, :4]) @ self.get_buffer("below")


def test_weights_that_are_read_twice_biases_without_weights_and_sums(tmp_path: Path) -> None:
    x = torch.rand(6, 8, generator=torch.Generator().manual_seed(1))
    graph = ExportGraph("twice", _Twice().eval().requires_grad_(False), {"x": x}, ("y", "sums"))
    model = to_onnx(graph, cpu)
    assert quantise(model, {"layer.weight": (0.0, 1.0)}) == 2
    wanted = expected(graph)
    seen = run(model, tmp_path / "m.onnx", x=x.numpy())
    assert np.abs(seen["y"] - wanted["y"]).max() < 0.03
    assert np.abs(seen["sums"] - wanted["sums"]).max() < 1e-2, "what only adds up has no 8-bit input"
    # the runtime gave what it rewrites of both uses of one weight the same name
    session = open_session(tmp_path / "m.onnx", cpu.provider, threads=1)
    assert np.abs(session.run(["y"], {"x": x.numpy()})[0] - wanted["y"]).max() < 0.03


def test_a_value_that_is_not_finite_is_named_in_calibration(tmp_path: Path) -> None:
    """A minimum and a maximum with NaN would just be dropped."""
    graph = layers(MOD)
    cases = [*single_graph_cases([graph])]
    graph.inputs["x"][0, 0] = float("inf")
    (tmp_path / "calibration").mkdir()
    with pytest.raises(DivergedError, match=r"calibration of graph 'layers': first non-finite: .*first\.weight"):
        calibrate(
            {"layers": to_onnx(graph, MOD)}, [*cases, *single_graph_cases([graph])], tmp_path / "calibration",
            cpu.provider, threads=1,
        )  # fmt: skip


class _Rows(torch.nn.Module):
    """Rows of a table, as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(64, 32)

    def forward(self, i: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.table(i),)


@pytest.mark.parametrize("reduce", [halve, lambda model: quantise(model, {})], ids=["float16", "int8"])
def test_rows_of_a_table_that_are_an_output_stay_float32(reduce: Callable[[ir.Model], int], tmp_path: Path) -> None:
    graph = ExportGraph("rows", _Rows().eval(), {"i": torch.tensor([3, 5])}, ("y",))
    model = to_onnx(graph, cpu)
    reduce(model)
    seen = run(model, tmp_path / "m.onnx", i=np.int64([3, 5]))
    with torch.no_grad():
        wanted = graph.module(torch.tensor([3, 5]))[0].numpy()
    assert seen["y"].dtype == np.float32
    assert np.abs(seen["y"] - wanted).max() < 5e-3


def test_symmetric_scales() -> None:
    numbers, scale = symmetric(np.float32([[1, -2], [0, 0], [127, 63.4]]), 0)
    assert numbers.tolist() == [[64, -127], [0, 0], [127, 63]]
    assert scale == pytest.approx([2 / 127, 1e-12 / 127, 1])


def whole(module: nn.Module, profile: Profile, out: Path) -> ExportResult:
    """The export of a student made of ``module``, whose inputs are 50 rows at a time."""
    module.eval()
    generator = torch.Generator().manual_seed(3)
    data = [Batch({"x": torch.rand(60, 2, generator=generator)}, 60) for _ in range(2)]
    graph = ExportGraph(
        "layers", module, {"x": data[0]["x"][:50]}, ("y", "best"), reads={"x": "x"}, gives={"y": "y", "best": "best"}
    )
    student = PlainStudent(module, ["x"], {"y": "BC", "best": "B"})
    return export_profile(
        student, PlainTarget(graph), profile, options={}, batches=data, out=out, metadata={}, say=lambda line: None
    )


@pytest.mark.parametrize("profile", [npu_fp16, npu_int8], ids=lambda p: p.name)
def test_a_whole_export_with_its_gate(profile: Profile, tmp_path: Path) -> None:
    profile = replace(profile, allowed_ops=MOD.allowed_ops)
    result = whole(Layers(), profile, tmp_path / "out")
    assert result.profile["graphs"]["layers"][f"{profile.dtype}_products"] == 2
    assert result.parity["limits"]["rel_l2"] > 1e-4
    assert max(c["outputs"]["y"]["rel_l2"] for c in result.parity["graphs"]["layers"]["cases"]) > 1e-6
    assert result.profile["graphs"]["layers"]["session_options"] == (EXACT_SUMS if profile.dtype == "int8" else {})


@pytest.mark.parametrize("wrong", [True, False])
def test_where_8_bit_sums_saturate_only_graphs_that_the_runtime_rewrites_are_compared(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if saturates() and not wrong:
        pytest.skip("this processor cannot run the graph as it is")
    monkeypatch.setattr(parity, "saturates", lambda: wrong)
    found = whole(Layers(), replace(npu_int8, allowed_ops=MOD.allowed_ops), tmp_path / "out").parity
    assert {case["optimised"] for case in found["graphs"]["layers"]["cases"]} == ({True} if wrong else {True, False})
    assert found.get("unoptimised", "") == ("not compared: 8-bit sums saturate on this processor" if wrong else "")


def test_sums_of_8_bit_products_are_exact_in_sessions_that_are_optimised(tmp_path: Path) -> None:
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.INT8, [64, 1], [127] * 64)
    x, y = (
        onnx.helper.make_tensor_value_info(name, kind, [1, width])
        for name, kind, width in (("x", onnx.TensorProto.UINT8, 64), ("y", onnx.TensorProto.INT32, 1))
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "sums", [x], [y], [weight]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "sums.onnx")
    session = open_session(tmp_path / "sums.onnx", "CPUExecutionProvider", threads=1)
    assert session.run(None, {"x": np.full((1, 64), 255, np.uint8)})[0].item() == 255 * 127 * 64


def test_eight_bits_that_are_too_few_are_rejected(tmp_path: Path) -> None:
    """One input a thousand times larger than the others leaves those no bits."""
    module = Layers().eval()
    with torch.no_grad():
        module.table[:, 0] *= 3e3
        module.first.weight[:, 0] = 0
    profile = replace(npu_int8, allowed_ops=MOD.allowed_ops)
    with pytest.raises(ParityError, match="rel_l2"):
        whole(module, profile, tmp_path / "out")
    assert (tmp_path / "out" / "layers.onnx.rejected").is_file()


class Wrapped(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)
