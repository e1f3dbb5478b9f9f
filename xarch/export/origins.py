"""Module and source line of the values of an exported graph, for profile errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

import onnx_ir as ir

SCOPES, TRACE = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"
"""Metadata keys of torch's exporter; they are removed from the file because they contain local paths."""
KEY = "xarch.origins"
STEPS = 6
"""Maximum number of steps from a rewritten node back to one that torch wrote."""

_LINE = re.compile(r'File "(?:[^"]*?)([^"/\\]+[/\\][^"/\\]+)", line (\d+)')


def keep_origins(model: ir.Model) -> None:
    """Record the origin of every computed value in ``model.meta``, before node metadata are cleared."""
    model.meta[KEY] = {
        output.name: origin
        for node in model.graph.all_nodes()
        for output in node.outputs
        if output.name and (origin := _nearest(node))
    }


def origins(model: ir.Model) -> Mapping[str, str]:
    """Return value -> e.g. "blocks.0.attn, layers/attention.py:77"; empty before :func:`keep_origins`."""
    kept: Mapping[str, str] = model.meta.get(KEY, {})
    return kept


def _nearest(node: ir.Node) -> str:
    """Return the origin of a node, or of its inputs if a pass created it."""
    waiting = [node]
    for _ in range(STEPS):
        origin = next(filter(None, map(_own, waiting)), "")
        if origin:
            return origin
        producers = (value.producer() for one in waiting for value in one.inputs if value is not None)
        waiting = [one for one in producers if one is not None]
    return ""


def _own(node: ir.Node) -> str:
    scopes = node.metadata_props.get(SCOPES)
    lines = _LINE.findall(node.metadata_props.get(TRACE, ""))
    parts = []
    if scopes:
        path = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
        parts += [path[-1].removeprefix("module").removeprefix(".")] if path else []
    parts += [f"{lines[-1][0]}:{lines[-1][1]}"] if lines else []
    return ", ".join(filter(None, parts))
