"""Rewrites of views and permutations with more dimensions than a profile allows.

A fused projection is reshaped to [batch, tokens, 3, heads, width], its axes are permuted, and three slices are taken:
each slice is read from the projection directly. Windows of an image are cut by a permutation of six axes, of which
axes that stay adjacent count as one. Both are rewritten with the remaining dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xarch.contracts.export import Profile
from xarch.export.lowering import ints, replace_node
from xarch.export.lowerings.lowering import Lowering
from xarch.export.views import merge_views, static_shape


def limit_rank(model: ir.Model, profile: Profile) -> int:
    """Rewrite views, permutations and slices of high rank in place; return the number of rewrites."""
    if profile.max_rank is None:
        return 0
    done = 0
    for rewrite in (_splits, _slices, _permutations):
        done += rewrite(model.graph, profile.max_rank)
        RemoveUnusedNodesPass()(model)
    if done:
        merge_views(model)
    return done


LOWERING = Lowering(
    "rank",
    "permuted views of high rank (fused qkv projections, windows) with at most the profile's number of dimensions",
    graph=limit_rank,
)


class _View:
    """A view of ``x`` with shape ``shape`` and axes in the order ``perm``."""

    def __init__(self, x: ir.Value, shape: Sequence[int], perm: Sequence[int]) -> None:
        self.x, self.shape, self.perm = x, list(shape), list(perm)

    @staticmethod
    def of(value: ir.Value | None) -> _View | None:
        """Return the view behind a value of high rank, or None if the value is computed."""
        shape, node = static_shape(value), None if value is None else value.producer()
        if shape is None or node is None:
            return None
        perm = list(range(len(shape)))
        if node.op_type == "Transpose":
            perm, value = _order(node, len(shape)), node.inputs[0]
            shape, node = static_shape(value), None if value is None else value.producer()
        if shape is None or node is None or node.op_type != "Reshape" or node.inputs[0] is None:
            return None
        return _View(node.inputs[0], shape, perm)


def _splits(graph: ir.Graph, limit: int) -> int:
    """Replace splits into single entries by slices, which are rewritten next; not counted."""
    for node in list(graph):
        shape = static_shape(node.inputs[0]) if node.op_type == "Split" and node.domain == "" else None
        if shape is None or len(shape) <= limit or node.inputs[0] is None:
            continue
        axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(shape)
        if len(node.outputs) != shape[axis] or any(part.is_graph_output() for part in node.outputs):
            continue
        for i, part in enumerate(node.outputs):
            made: list[ir.Node] = []
            one = ir.node("Slice", [node.inputs[0], ints(made, [i]), ints(made, [i + 1]), ints(made, [axis])])
            one.outputs[0].shape, one.outputs[0].type = part.shape, part.type
            graph.insert_before(node, [*made, one])
            part.replace_all_uses_with(one.outputs[0])
        graph.remove(node, safe=True)
    return 0


def _slices(graph: ir.Graph, limit: int) -> int:
    """Rewrite one entry along an axis of a permuted view: slice the source, then reshape and permute the rest."""
    done = 0
    for node in list(graph):
        taken = _entry(node)
        view = None if taken is None else _View.of(node.inputs[0])
        if taken is None or view is None or not limit < len(view.shape) <= limit + 1:
            continue
        index, place = taken
        axis = view.perm[place]
        lead, rest = math.prod(view.shape[:axis]), view.shape[axis + 1 :]
        made: list[ir.Node] = []
        flat = _reshape(made, view.x, [lead, view.shape[axis], math.prod(rest)])
        one = ir.node("Slice", [flat, ints(made, [index]), ints(made, [index + 1]), ints(made, [1])])
        _told(one, [lead, 1, math.prod(rest)], view.x)
        made.append(one)
        part = _reshape(made, one.outputs[0], [*view.shape[:axis], *rest])
        perm = [p - (p > axis) for p in view.perm if p != axis]
        part = _transpose(made, part, perm)
        output = node.outputs[0]
        if static_shape(output) == static_shape(part):
            replace_node(graph, node, made, part)
        elif output.is_graph_output() or any(use.node.op_type not in ("Reshape", "Squeeze") for use in output.uses()):
            continue
        else:
            graph.insert_before(node, made)
            for use in list(output.uses()):
                _view_instead(graph, use.node, part)
        done += 1
    return done


def _permutations(graph: ir.Graph, limit: int) -> int:
    """Rewrite a permutation between two views: merge axes that stay adjacent and drop axes of size 1."""
    done = 0
    for node in list(graph):
        view = _View.of(node.outputs[0]) if node.op_type == "Transpose" else None
        output = node.outputs[0]
        if view is None or len(view.shape) <= limit or output.is_graph_output():
            continue
        if any(use.node.op_type != "Reshape" for use in output.uses()):
            continue
        shape, perm = grouped(view.shape, view.perm)
        if len(shape) > limit:
            continue
        made: list[ir.Node] = []
        moved = _transpose(made, _reshape(made, view.x, shape), perm)
        graph.insert_before(node, made)
        for use in list(output.uses()):
            use.node.replace_input_with(0, moved)
        done += 1
    return done


def grouped(shape: Sequence[int], perm: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the shortest shape and order that describe the same permutation."""
    order = [axis for axis in perm if shape[axis] != 1]
    runs: list[list[int]] = []
    alive = [axis for axis in range(len(shape)) if shape[axis] != 1]
    follows = dict(pairwise(alive))
    for axis in order:
        if runs and follows.get(runs[-1][-1]) == axis:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    sources = sorted(runs)
    return [math.prod(shape[a] for a in run) for run in sources], [sources.index(run) for run in runs]


def _entry(node: ir.Node) -> tuple[int, int] | None:
    """Return (index, axis) of a node that selects one entry along one axis, else None."""
    shape = static_shape(node.inputs[0]) if node.inputs else None
    if shape is None or node.domain != "":
        return None
    if node.op_type == "Gather":
        index = _known(node.inputs[1])
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        if index is None or len(index) != 1 or len(static_shape(node.outputs[0]) or shape) != len(shape) - 1:
            return None
        return index[0] % shape[axis], axis % len(shape)
    if node.op_type != "Slice":
        return None
    starts, ends, axes = (_known(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2, 3))
    if starts is None or ends is None or axes is None or len(axes) != 1:
        return None
    axis = axes[0] % len(shape)
    start, end = (min(v + shape[axis] if v < 0 else v, shape[axis]) for v in (starts[0], ends[0]))
    return (start, axis) if end - start == 1 else None


def _known(value: ir.Value | None) -> list[int] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy().reshape(-1).tolist()


def _order(node: ir.Node, rank: int) -> list[int]:
    perm = node.attributes.get("perm")
    return list(reversed(range(rank))) if perm is None else list(perm.as_ints())


def _reshape(nodes: list[ir.Node], x: ir.Value, shape: list[int]) -> ir.Value:
    node = ir.node("Reshape", [x, ints(nodes, shape)])
    _told(node, shape, x)
    nodes.append(node)
    return node.outputs[0]


def _transpose(nodes: list[ir.Node], x: ir.Value, perm: list[int]) -> ir.Value:
    if perm == sorted(perm):
        return x
    shape = static_shape(x)
    assert shape is not None
    node = ir.node("Transpose", [x], attributes={"perm": perm})
    _told(node, [shape[p] for p in perm], x)
    nodes.append(node)
    return node.outputs[0]


def _view_instead(graph: ir.Graph, node: ir.Node, x: ir.Value) -> None:
    """Make ``x`` the input of a view; it has the same elements in the same order."""
    shape = static_shape(node.outputs[0])
    if node.op_type == "Reshape":
        node.replace_input_with(0, x)
        return
    assert shape is not None
    made: list[ir.Node] = []
    replace_node(graph, node, made, _reshape(made, x, list(shape)))


def _told(node: ir.Node, shape: Sequence[int], like: ir.Value) -> None:
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(list(shape)), like.type
