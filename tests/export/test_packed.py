"""Products of the same values as one, and a sum with its norm as one operator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from xarch.export.blocks import quantise_blocks
from xarch.export.packed import pack_products
from xarch.export.skip_norm import OPERATOR, join_skip_norms

WIDTHS = {"q": 64, "k": 32, "v": 32}


def block(tokens: int, used: str = "qkv", *, rank: int = 3) -> ir.Model:
    """Projections of one input, and a sum with its norm, of which both are outputs."""
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=(64, width)).astype(np.float32) for name, width in WIDTHS.items()}
    constants = {"weight": generator.random(64).astype(np.float32) + 0.5, "two": np.float32(2.0)}
    constants |= {"epsilon": np.float32(1e-5), "last": np.array([-1], np.int64)}
    constants |= {name: weights[name] for name in used}
    steps = [
        ("Add", ["x", "other"], "total"),
        ("Pow", ["total", "two"], "square"),
        ("ReduceMean", ["square", "last"], "mean"),
        ("Add", ["mean", "epsilon"], "above"),
        ("Sqrt", ["above"], "root"),
        ("Div", ["total", "root"], "even"),
        ("Mul", ["even", "weight"], "normed"),
        *(("MatMul", ["x", name], f"{name}_out") for name in used),
    ]
    nodes = [helper.make_node(op, given, [made]) for op, given, made in steps]
    shape = [1, tokens, 64][3 - rank :]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "other")]
    widths = {"total": 64, "normed": 64} | {f"{name}_out": WIDTHS[name] for name in used}
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [*shape[:-1], w]) for n, w in widths.items()]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "block", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))


def ran(model: ir.Model, tokens: int) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    generator = np.random.default_rng(1)
    given = {v.name: generator.normal(size=v.shape).astype(np.float32) for v in session.get_inputs()}
    assert all(value.shape[-2] == tokens for value in given.values())
    return dict(zip([v.name for v in session.get_outputs()], session.run(None, given), strict=True))


def agree(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() < 1e-5


def products(model: ir.Model) -> list[int]:
    return [node.attributes["N"].as_int() for node in model.graph if node.op_type == "MatMulNBits"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 5])
def test_products_of_one_input_become_one_with_the_same_result(bits: int, tokens: int) -> None:
    apart, joint = block(tokens), block(tokens)
    for model in (apart, joint):
        quantise_blocks(model, bits)
    assert pack_products([joint]) == 2
    assert (products(apart), products(joint)) == ([64, 32, 32], [128])
    agree(ran(joint, tokens), ran(apart, tokens))


def test_a_weight_that_another_graph_reads_otherwise_stays_alone() -> None:
    models = [block(1), block(1, "qk")]
    for model in models:
        quantise_blocks(model, 4)
    assert pack_products(models) == 0
    assert pack_products(models[:1]) == 2


def test_a_sum_and_its_norm_are_one_operator_of_the_runtime() -> None:
    model = block(5)
    assert join_skip_norms(model) == 1
    kinds = [node.op_type for node in model.graph]
    assert (kinds.count(OPERATOR), kinds.count("Sqrt"), kinds.count("Add")) == (1, 0, 0)
    agree(ran(model, 5), ran(block(5), 5))
    # The operator reads three dimensions.
    assert join_skip_norms(block(5, rank=2)) == 0
