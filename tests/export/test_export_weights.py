"""One file for the tensors of many graphs: stored once, aligned, readable, absent after a failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xarch.contracts.export import ExportGraph
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu
from xarch.export.session import open_session
from xarch.export.weights import ALIGNMENT, INLINE_BYTES, WeightStore, externalise


def model_with(**tensors: np.ndarray) -> ir.Model:
    """A graph that adds up nothing but holds ``tensors`` as initialisers and reads each of them."""
    values = {name: ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in tensors.items()}
    nodes = [ir.node("Identity", [value], outputs=[ir.Value(name=f"{name}_out")]) for name, value in values.items()]
    graph = ir.Graph(
        [], [n.outputs[0] for n in nodes], nodes=nodes, initializers=list(values.values()), opset_imports={"": 18}
    )
    return ir.Model(graph, ir_version=8)


def test_equal_bytes_are_stored_once_across_graphs(tmp_path: Path) -> None:
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    models = [model_with(a=big, b=big.copy()), model_with(c=big.copy(), d=big.T.copy())]
    with WeightStore(tmp_path / "w.data") as store:
        for model in models:
            externalise(model, store, transposed=False)
    assert (tmp_path / "w.data").stat().st_size == store.bytes == 2 * big.nbytes
    assert store.saved == 2 * big.nbytes
    a, b = (models[0].graph.initializers[n].const_value for n in "ab")
    c, d = (models[1].graph.initializers[n].const_value for n in "cd")
    assert a.offset == b.offset == c.offset != d.offset  # type: ignore[union-attr]
    np.testing.assert_array_equal(d.numpy(), big.T)  # type: ignore[union-attr]


def test_small_tensors_stay_inline(tmp_path: Path) -> None:
    small = np.zeros(INLINE_BYTES // 4 - 1, np.float32)
    large = np.zeros(INLINE_BYTES // 4, np.float32)
    model = model_with(small=small, large=large)
    with WeightStore(tmp_path / "w.data") as store:
        assert externalise(model, store) == small.nbytes + large.nbytes
    assert not isinstance(model.graph.initializers["small"].const_value, ir.ExternalTensor)
    assert isinstance(model.graph.initializers["large"].const_value, ir.ExternalTensor)


def test_large_constants_inside_nodes_become_external(tmp_path: Path) -> None:
    table = np.arange(1000, dtype=np.float32)
    constant = ir.node("Constant", [], attributes={"value": ir.tensor(table)}, outputs=[ir.Value(name="table")])
    reader = ir.node("Identity", [constant.outputs[0]], outputs=[ir.Value(name="y")])
    graph = ir.Graph([], [reader.outputs[0]], nodes=[constant, reader], opset_imports={"": 18})
    model = ir.Model(graph, ir_version=8)
    with WeightStore(tmp_path / "w.data") as store:
        externalise(model, store)
    assert store.bytes == table.nbytes


def test_no_large_tensor_no_file(tmp_path: Path) -> None:
    with WeightStore(tmp_path / "w.data") as store:
        externalise(model_with(a=np.zeros(3, np.float32)), store)
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "w.data"
    path.write_bytes(b"older")

    def stop_half_way() -> None:
        with WeightStore(path) as store:
            store.add(ir.tensor(np.ones(1000, np.float32)))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_half_way()
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["float32", "float16", "int64", "uint8", "bool"]), st.integers(1, 3000), st.integers(0, 2)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, specs: list[tuple[str, int, int]]) -> None:
    folder = tmp_path_factory.mktemp("store")
    arrays = {
        f"t{i}": np.random.default_rng(seed).integers(0, 2, size).astype(dtype)
        for i, (dtype, size, seed) in enumerate(specs)
    }
    model = model_with(**arrays)
    with WeightStore(folder / "w.data") as store:
        externalise(model, store)
    ir.save(model, folder / "m.onnx")
    back = ir.load(folder / "m.onnx")
    for name, array in arrays.items():
        tensor = back.graph.initializers[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)
        if isinstance(tensor, ir.ExternalTensor):
            assert tensor.offset is not None
            assert tensor.offset % ALIGNMENT == 0


class Trunk(torch.nn.Module):
    """One layer that two graphs use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(48, 64), torch.nn.Linear(64, 48, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["fixed first", "free first"])
def test_two_graphs_of_one_module_hold_one_copy(order: tuple[int, int], tmp_path: Path) -> None:
    """encdec W18: with two free dimensions products stay MatMul over transposed copies, and nothing was shared."""
    torch.manual_seed(0)
    trunk = Trunk().eval().requires_grad_(False)
    graphs = [
        ExportGraph("row", trunk, {"x": torch.rand(1, 48)}, ["y"]),
        ExportGraph("grid", trunk, {"x": torch.rand(2, 5, 48)}, ["y"], {"x": {0: "batch", 1: "length"}}),
    ]
    with WeightStore(tmp_path / "w.data") as store:
        for i in order:
            model = to_onnx(graphs[i], cpu)
            externalise(model, store)
            ir.save(model, tmp_path / f"{graphs[i].name}.onnx")
    matrices = 2 * 4 * 48 * 64
    assert store.saved == matrices
    assert matrices <= store.bytes < matrices + 2 * ALIGNMENT
    for name, shape in (("row", (1, 48)), ("grid", (3, 7, 48))):
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
        x = torch.rand(shape)
        for optimise in (True, False):
            seen = open_session(tmp_path / f"{name}.onnx", cpu.provider, threads=1, optimise=optimise)
            np.testing.assert_allclose(seen.run(None, {"x": x.numpy()})[0], trunk(x), rtol=1e-5, atol=1e-6)
