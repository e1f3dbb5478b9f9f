"""Translation of one export graph to an ONNX model in memory; its weights remain views of the module's tensors."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from xarch.contracts.chain import Chain
from xarch.contracts.export import ExportGraph, Profile
from xarch.errors import PlanError
from xarch.export import exporter_tables, lowerings
from xarch.export.compose import Template, composed
from xarch.export.integers import narrow_integers
from xarch.export.lowering import expand_uniform, gather_rows, linear_to_gemm, reciprocal_to_div
from xarch.export.matmul import gemm_to_matmul
from xarch.export.opset import lower_opset
from xarch.export.origins import keep_origins
from xarch.export.skip_norm import SKIP_NORM, join_skip_norms
from xarch.export.structure import named_tensors, structure
from xarch.export.views import merge_views

EXPORTER_OPSET = 18
"""The lowest opset torch's exporter supports; models are converted down to older ones."""

WEIGHT = "module."
"""Prefix of the names of a module's parameters and buffers in a translated graph."""

_LOUD = ("torch.onnx", "onnxscript", "onnx_ir")
"""Loggers of the translation."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")

IR_OF_OPSET = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
"""Opset -> the IR version released with it, the oldest file format that supports it."""


class _Positional(nn.Module):
    """Wraps a module in one signature, so that dynamic dimensions are given by position, and runs it in the form the
    profile needs."""

    def __init__(self, module: nn.Module, profile: Profile) -> None:
        super().__init__()
        self.module, self.profile = module, profile

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with lowerings.lowered(self.profile):
            outputs = self.module(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


RECENT = 64
"""Links of chains that are kept for other students of the same structure."""

_recent: dict[Profile, dict[Hashable, Template]] = {}


def _links() -> dict[Profile, dict[Hashable, Template]]:
    """Return the links that a process has translated lately; their templates hold no weights."""
    if sum(map(len, _recent.values())) > RECENT:
        _recent.clear()
    return _recent


@dataclass
class Translated:
    """What has been translated for one student, whose weights do not change meanwhile: profiles that differ in nothing
    but precision share it.

    Attributes:
        links: by profile, the links of chains by their structure. They fit other students as well.
        graphs: graphs that are no chains, by structure, weights and interface.
    """

    links: dict[Profile, dict[Hashable, Template]] = field(default_factory=_links)
    graphs: dict[Hashable, tuple[nn.Module, ir.Model]] = field(default_factory=dict)

    def whole(self, graph: ExportGraph, profile: Profile) -> ir.Model:
        """Return a copy of the model of a graph as a whole."""
        tensors = tuple(id(tensor) for tensor in named_tensors(graph.module).values())
        given = tuple((name, tuple(t.shape), t.dtype) for name, t in graph.inputs.items())
        free = tuple((name, tuple(dims.items())) for name, dims in graph.dynamic.items())
        key = (profile, structure(graph.module), tensors, given, free, tuple(graph.outputs))
        if key not in self.graphs:
            self.graphs[key] = graph.module, _translated(graph, profile)
        return self.graphs[key][1].clone()


def to_onnx(graph: ExportGraph, profile: Profile, known: Translated | None = None) -> ir.Model:
    """Translate ``graph`` to the profile's opset, with its names and free dimensions unchanged.

    Args:
        known: what earlier calls for the same student have translated.

    Raises:
        PlanError: torch cannot trace or translate the module, a free dimension turned out to be fixed, or the graph
            needs an opset, an IR version or an integer that the profile does not have.
    """
    model, known, form = None, known or Translated(), _form(profile)
    if isinstance(graph.module, Chain):
        model = composed(
            graph,
            graph.module,
            lambda link: _translated(link, form, bare=True),
            known.links.setdefault(form, {}),
            static=profile.static,
        )
    if model is None:
        model = known.whole(graph, form)
    else:
        # what links compute from their weights alone
        fold_constants(model, onnx_shape_inference=False)
        merge_views(model)
    if graph.weight_only and not profile.static:
        gemm_to_matmul(model)
    if profile.runtime_ops >= {SKIP_NORM}:
        join_skip_norms(model)
    expand_uniform(model)
    if profile.index_dtype == "int32":
        narrow_integers(model)
    if profile.max_opset < model.opset_imports.get("", 0):
        lower_opset(model, profile.max_opset)
    keep_origins(model)
    ClearMetadataAndDocStringPass()(model)
    # torch renames an input that is returned unchanged
    for value, name in zip(model.graph.inputs, graph.inputs, strict=True):
        value.name = name
    for name in list(model.graph.initializers):
        value = model.graph.initializers[name]
        if name.startswith(WEIGHT):
            value.name = name.removeprefix(WEIGHT)
    _settle_versions(model, graph, profile)
    _check_interface(model, graph)
    return model


def _form(profile: Profile) -> Profile:
    """Return the profile without what comes after translation: precision, and where the graph runs."""
    return replace(
        profile, name="", provider="", summary="", dtype="float32", integers=(), runtime_ops=frozenset(), max_ir=0
    )


def _translated(graph: ExportGraph, profile: Profile, *, bare: bool = False) -> ir.Model:
    """Return the module's operators in the form that the profile needs.

    Args:
        bare: the weights become further inputs, and nothing in the graph depends on their values.
    """
    program = _translate(graph, profile)
    linear_to_gemm(program.model)
    reciprocal_to_div(program.model)
    if bare:
        _take_out_weights(program.model, graph.module)
    program.optimize()
    model: ir.Model = program.model
    gather_rows(model)
    merge_views(model)
    lowerings.rewrite(model, profile)
    return model


def _take_out_weights(model: ir.Model, module: nn.Module) -> None:
    for name in named_tensors(module):
        # other initialisers are constants of the module's code
        value = model.graph.initializers.pop(WEIGHT + name, None)
        if value is not None:
            value.const_value, value.name = None, name
            model.graph.inputs.append(value)


def _translate(graph: ExportGraph, profile: Profile) -> Any:
    module, dimensions = _Positional(graph.module, profile).eval(), _dimensions(graph)
    try:
        with torch.no_grad(), warnings.catch_warnings(), exporter_tables.shared(), _quiet(*_LOUD):
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                module,
                tuple(graph.inputs.values()),
                dynamo=True,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                opset_version=max(profile.max_opset, EXPORTER_OPSET),
                dynamic_shapes=(dimensions,),
                # the optimiser folds weight transposes into copies; it runs after they are rewritten
                optimize=False,
                verify=False,
                verbose=False,
            )
    except Exception as e:
        raise PlanError(
            f"graph {graph.name!r} cannot be exported: {_reason(e)}",
            "use operators that torch.onnx can translate, and no branches on values",
        ) from e


def _reason(error: BaseException) -> str:
    """Return the failed step and the root cause; torch's outermost message states neither."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    told = dict.fromkeys([chain[min(1, len(chain) - 1)], chain[-1]])
    lines = (next(iter(str(e).strip().splitlines()), "") for e in told)
    return "; ".join(f"{type(e).__name__}: {_ANSI.sub('', line)[:300]}" for e, line in zip(told, lines, strict=True))


def _dimensions(graph: ExportGraph) -> tuple[Mapping[int, Any] | None, ...]:
    """Return the free dimensions per input; equal symbols mean equal sizes. Sizes start at 0: a cache may be empty."""
    unknown = sorted(set(graph.dynamic) - set(graph.inputs))
    if unknown:
        raise ValueError(f"graph {graph.name!r}: dynamic names {unknown} are not inputs")
    symbols = {s for dims in graph.dynamic.values() for s in dims.values()}
    made = {s: torch.export.Dim(s, min=0, max=2**30) for s in symbols}
    return tuple(
        {axis: made[symbol] for axis, symbol in graph.dynamic[name].items()} if graph.dynamic.get(name) else None
        for name in graph.inputs
    )


def _settle_versions(model: ir.Model, graph: ExportGraph, profile: Profile) -> None:
    opset = model.opset_imports.get("", 0)
    if opset > profile.max_opset:
        raise PlanError(
            f"graph {graph.name!r} needs opset {opset}, profile {profile.name!r} supports at most {profile.max_opset}"
        )
    model.ir_version = min(IR_OF_OPSET.get(opset, model.ir_version), model.ir_version)
    if model.ir_version > profile.max_ir:
        raise PlanError(
            f"graph {graph.name!r} needs ONNX IR {model.ir_version}, profile {profile.name!r} supports at most "
            f"{profile.max_ir}"
        )
    for domain in [d for d in model.opset_imports if d and not _uses_domain(model, d)]:
        del model.opset_imports[domain]


def _uses_domain(model: ir.Model, domain: str) -> bool:
    return any(node.domain == domain for node in model.graph.all_nodes())


def _check_interface(model: ir.Model, graph: ExportGraph) -> None:
    """Check that names are unchanged and that every dimension declared free is free."""
    inputs, outputs = [v.name for v in model.graph.inputs], [v.name for v in model.graph.outputs]
    if inputs != list(graph.inputs) or outputs != list(graph.outputs):
        raise PlanError(
            f"graph {graph.name!r} was exported with inputs {inputs} and outputs {outputs}, "
            f"wanted {list(graph.inputs)} and {list(graph.outputs)}",
            "every output must be a separate tensor",
        )
    for value in model.graph.inputs:
        for axis, symbol in graph.dynamic.get(value.name or "", {}).items():
            if value.shape is None or isinstance(value.shape[axis], int):
                raise PlanError(f"graph {graph.name!r}: dimension {axis} ({symbol}) of {value.name!r} became fixed")


class _quiet:
    """Silence the exporter's loggers, which report every internal fallback."""

    def __init__(self, *names: str) -> None:
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.CRITICAL)

    def __exit__(self, *exc: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
