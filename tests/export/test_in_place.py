"""States that a graph writes where it read them, and calls that let it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from xarch.export.in_place import GraphCalls, in_place
from xarch.export.session import Sessions

HEADS, WIDTH, ROOM = 2, 8, 12


def attention(*, also: str = "") -> onnx.ModelProto:
    """One token's attention to a cache with room.

    Args:
        also: what reads the state besides: a "node" or an "output".
    """
    names = ["x", "x", "x", "keys", "values", "last", "room"]
    nodes = [
        helper.make_node(
            "GroupQueryAttention",
            names,
            ["out", "present_keys", "present_values"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
        )
    ]
    cache = [1, HEADS, ROOM, WIDTH]
    shapes = {"x": [1, 1, HEADS * WIDTH], "keys": cache, "values": cache}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]
    inputs.append(helper.make_tensor_value_info("last", TensorProto.INT32, [1]))
    given = {"out": shapes["x"], "present_keys": cache, "present_values": cache}
    if also == "node":
        nodes.append(helper.make_node("ReduceMax", ["keys"], ["most"], keepdims=0))
        given["most"] = []
    if also == "output":
        nodes.append(helper.make_node("Neg", ["present_keys"], ["negative"]))
        given["negative"] = cache
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in given.items()]
    room = helper.make_tensor("room", TensorProto.INT32, [1], [ROOM])
    graph = helper.make_graph(nodes, "attention", inputs, outputs, [room])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def saved(model: onnx.ModelProto, folder: Path, name: str = "one") -> dict[str, str]:
    found = in_place(ir.serde.deserialize_model(model))
    model.metadata_props.add(key="xarch.in_place", value=json.dumps(found))
    onnx.save(model, folder / f"{name}.onnx")
    return found


@pytest.mark.parametrize("also", ["node", "output"])
def test_what_something_else_reads_is_not_written_in_place(also: str) -> None:
    assert in_place(ir.serde.deserialize_model(attention(also=also))) == {"present_values": "values"}


def test_states_stay_where_they_are_and_results_are_those_of_copies(tmp_path: Path) -> None:
    assert saved(attention(), tmp_path) == {"present_keys": "keys", "present_values": "values"}
    copies = Sessions(tmp_path, "CPUExecutionProvider", threads=1, optimise=True)
    calls = GraphCalls(tmp_path, "CPUExecutionProvider", threads=1)
    numbers = np.random.default_rng(0).normal(size=(5, 1, 1, HEADS * WIDTH)).astype(np.float32)
    for _ in range(2):
        # a second text begins with arrays of its own
        held = [{n: np.zeros((1, HEADS, ROOM, WIDTH), np.float32) for n in ("keys", "values")} for _ in range(2)]
        mine = dict(held[0])
        outs = []
        for step, x in enumerate(numbers):
            given = {"x": x, "last": np.array([step], np.int32)}
            found, wanted = calls("one", given | held[0]), copies("one", given | held[1])
            held = [{n: out[f"present_{n}"] for n in ("keys", "values")} for out in (found, wanted)]
            outs.append(found["out"])
            assert all(held[0][n] is mine[n] for n in mine)
            assert all(np.array_equal(found[n], wanted[n]) for n in wanted)
        assert not np.array_equal(outs[0], outs[1])
