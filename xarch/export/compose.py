"""Translation of a chain: one ONNX graph per structure of its links, and copies of it with weights of their own.

torch's exporter takes time in proportion to the number of operators, and its optimiser more than that; a decoder of
thirty layers has two or three kinds of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import onnx_ir as ir
import sympy
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from xarch.contracts.chain import Chain, Link, link_values
from xarch.contracts.export import ExportGraph
from xarch.errors import PlanError
from xarch.export.origins import SCOPES
from xarch.export.structure import named_tensors, structure

Translate = Callable[[ExportGraph], ir.Model]
"""Translates one link; weights are inputs after the graph's own, named as in its module."""


SIZE = "size_of_"
"""Prefix of the free dimensions of a template that stand for sizes of a link."""


@dataclass(frozen=True)
class Template:
    """A translated link.

    Attributes:
        model: its inputs are the link's, followed by its weights.
        weights: names of the weights in the link's module.
        given: example of every tensor that it returns.
        free: free dimensions of these.
    """

    model: ir.Model
    weights: list[str]
    given: list[Tensor]
    free: list[dict[int, str]]


def composed(
    graph: ExportGraph, chain: Chain, translate: Translate, templates: dict[Hashable, Template], *, static: bool
) -> ir.Model | None:
    """Return the model of a chain, or None if a size between two links is computed, which only a translation of the
    whole can express.

    Args:
        graph: its module is ``chain``.
        translate: see :data:`Translate`.
        templates: links that were translated in the same way before; receives those of this chain.
        static: every size must be a constant already when a link is translated, so that links that differ in sizes
            share nothing.
    """
    symbols = {symbol for dims in graph.dynamic.values() for symbol in dims.values()}
    examples = dict(zip(chain.inputs, graph.inputs.values(), strict=True)) | chain.constants
    free: dict[str, dict[int, str]] = {name: {} for name in chain.constants}
    free |= {own: dict(graph.dynamic.get(n, {})) for own, n in zip(chain.inputs, graph.inputs, strict=True)}
    used: list[Template] = []
    for i, link in enumerate(chain.links):
        if not symbols.issuperset(symbol for n in link.reads for symbol in free[n].values()):
            return None
        sizes = {} if static else _sizes(link, examples)
        dims = {n: free[n] | sizes.get(n, {}) for n in link.reads}
        given = [(_shape(examples[n], dims[n]), examples[n].dtype, tuple(dims[n].items())) for n in link.reads]
        key = structure(link.module, sizes=not sizes), tuple(given)
        if key not in templates:
            templates[key] = _template(f"{graph.name}, link {i}", link, examples, dims, translate)
        used.append(templates[key])
        with torch.no_grad():
            examples |= link_values(link, examples) if sizes else dict(zip(link.gives, used[-1].given, strict=True))
        free |= {n: _left(dims, symbols) for n, dims in zip(link.gives, used[-1].free, strict=True)}
    return _joined(graph, chain, used, examples)


def _sizes(link: Link, examples: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """Return the sizes in which a link may differ from others, of values it reads."""
    return {name: {axis: f"{SIZE}{size}" for axis, size in axes.items()} for name, axes in link.sizes.items() if axes}


def _left(dims: Mapping[int, str], symbols: AbstractSet[str]) -> dict[int, str]:
    """Return the dimensions that stay free when a link has its own sizes: all but those computed from these alone."""
    return {a: size for a, size in dims.items() if SIZE not in size or symbols & set(re.findall(r"\w+", size))}


def _shape(example: Tensor, dims: Mapping[int, str]) -> tuple[int | str, ...]:
    return tuple(dims.get(axis, size) for axis, size in enumerate(example.shape))


def _template(
    name: str,
    link: Link,
    examples: Mapping[str, Tensor],
    free: Mapping[str, dict[int, str]],
    translate: Translate,
) -> Template:
    names = [f"in_{i}" for i in range(len(link.reads))]
    with torch.no_grad():
        given = link_values(link, dict(examples))
    one = ExportGraph(
        name,
        link.module,
        dict(zip(names, (examples[n] for n in link.reads), strict=True)),
        [f"out_{i}" for i in range(len(link.gives))],
        {own: free[n] for own, n in zip(names, link.reads, strict=True) if free[n]},
    )
    model = translate(one)
    for value, n in zip(model.graph.inputs, link.reads, strict=False):
        shape = value.shape
        fixed = [
            size
            for axis, size in free[n].items()
            if size.startswith(SIZE) and (shape is None or isinstance(shape[axis], int))
        ]
        if fixed:
            raise PlanError(
                f"{name}: translation made {', '.join(fixed)} of {n!r} a constant",
                "compute nothing in Python from a size in which links differ",
            )
    weights = [str(value.name) for value in model.graph.inputs[len(names) :]]
    return Template(model, weights, list(given.values()), [_free(value) for value in model.graph.outputs])


def _free(value: ir.Value) -> dict[int, str]:
    shape = value.shape or ()
    return {axis: str(size.value) for axis, size in enumerate(shape) if not isinstance(size, int)}


def _joined(graph: ExportGraph, chain: Chain, templates: list[Template], examples: Mapping[str, Tensor]) -> ir.Model:
    first = templates[0].model
    values = {own: _input(graph, name) for own, name in zip(chain.inputs, graph.inputs, strict=True)}
    whole = ir.Graph(list(values.values()), [], nodes=[], opset_imports=dict(first.graph.opset_imports))
    store = _Weights(chain, whole)
    values |= {name: store.value(tensor) for name, tensor in chain.constants.items()}
    modules = {id(module): name for name, module in chain.owner.named_modules()}
    for i, (link, template) in enumerate(zip(chain.links, templates, strict=True)):
        whole.opset_imports.update(template.model.graph.opset_imports)
        part = template.model.graph.clone()
        outputs = list(part.outputs)
        part.outputs.clear()
        own = named_tensors(link.module)
        outer = [values[name] for name in link.reads] + [store.value(own[name]) for name in template.weights]
        inner = dict(zip(part.inputs, outer, strict=True))
        for value, replacement in inner.items():
            value.replace_all_uses_with(replacement)
        for value in list(part.initializers.values()):
            del part.initializers[str(value.name)]
            value.name = f"{i}/{value.name}"
            whole.register_initializer(value)
        _settle(part, link, examples)
        for inner_node in ir.traversal.RecursiveGraphIterator(part):
            _rename(inner_node, f"{i}/")
            for value in inner_node.outputs:
                _own_counts(value, i)
        nodes = list(part)
        part.remove(nodes)
        inside, place = _place(link, modules)
        for node in nodes:
            if SCOPES in node.metadata_props:
                moved = node.metadata_props[SCOPES].replace(f"'module{inside}", f"'module{place}")
                node.metadata_props[SCOPES] = moved
        whole.extend(nodes)
        values |= {name: inner.get(value, value) for name, value in zip(link.gives, outputs, strict=True)}
    for own_name, name in zip(chain.outputs, graph.outputs, strict=True):
        value = values[own_name]
        if value.is_graph_input() or value.is_graph_output() or value.is_initializer():
            copy = ir.node("Identity", [value])
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            whole.append(copy)
            value = copy.outputs[0]
        value.name = name
        whole.outputs.append(value)
    return ir.Model(whole, ir_version=first.ir_version)


COUNT = re.compile(r"\bu(\d+)\b")
"""A size that depends on values, as torch calls it."""


def _own_counts(value: ir.Value, link: int) -> None:
    """Give sizes that depend on values names of the link's own: those of other links differ, and a runtime takes sizes
    of one name to be equal."""
    if value.shape is None:
        return
    dims = [size if isinstance(size, int) else size.value for size in value.shape]
    value.shape = ir.Shape([COUNT.sub(rf"u\1_{link}", d) if isinstance(d, str) else d for d in dims])


def _settle(part: ir.Graph, link: Link, examples: Mapping[str, Tensor]) -> None:
    """Put a link's own sizes in the place of their names, and what is computed from these."""
    own = {f"{SIZE}{n}": examples[v].shape[a] for v, axes in link.sizes.items() for a, n in axes.items()}
    if not own:
        return
    values = [v for node in ir.traversal.RecursiveGraphIterator(part) for v in node.outputs]
    bodies = [
        v
        for node in ir.traversal.RecursiveGraphIterator(part)
        for a in node.attributes.values()
        for v in _body_inputs(a)
    ]
    for value in (*values, *bodies):
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else _settled(str(d.value), own) for d in value.shape])


def _settled(size: str, own: Mapping[str, int]) -> int | None:
    """Return a size from its name or a formula of names, e.g. ``3*size_of_slots + 96``; None if others occur in it."""
    if size in own:
        return own[size]
    if not set(re.findall(r"[A-Za-z_]\w*", size)) <= set(own):
        return None
    return int(sympy.sympify(size, locals={name: sympy.Integer(n) for name, n in own.items()}))


def _rename(node: ir.Node, prefix: str) -> None:
    """Give a node, its outputs, and the inputs of its subgraphs names that no other link uses."""
    node.name = f"{prefix}{node.name}"
    for value in (*node.outputs, *(v for a in node.attributes.values() for v in _body_inputs(a))):
        value.name = f"{prefix}{value.name}"


def _body_inputs(attribute: ir.Attr) -> list[ir.Value]:
    return list(attribute.as_graph().inputs) if attribute.type == ir.AttributeType.GRAPH else []


def _place(link: Link, modules: Mapping[int, str]) -> tuple[str, str]:
    """Return where the first of a link's modules that the owner has lies in the link and in the owner, e.g. ".block"
    and ".blocks.3"."""
    for name, module in link.module.named_modules():
        if id(module) in modules:
            return f".{name}" if name else "", f".{modules[id(module)]}"
    return "", ""


def _input(graph: ExportGraph, name: str) -> ir.Value:
    example, dims = graph.inputs[name], graph.dynamic.get(name, {})
    shape = ir.Shape([dims.get(axis, size) for axis, size in enumerate(example.shape)])
    return ir.Value(name=name, shape=shape, type=ir.TensorType(TorchTensor(example).dtype))


class _Weights:
    """Initialisers of the composed graph, one per tensor, named as the chain's owner names them."""

    def __init__(self, chain: Chain, graph: ir.Graph) -> None:
        self.graph = graph
        self.names = {id(t): name for name, t in reversed(named_tensors(chain.owner).items())}
        self.names |= {id(t): name for name, t in chain.constants.items()}
        self.made: dict[int, ir.Value] = {}

    def value(self, tensor: Tensor) -> ir.Value:
        if id(tensor) not in self.made:
            name = self.names.get(id(tensor), f"weight_{len(self.made)}")
            held = TorchTensor(tensor.detach(), name=name)
            made = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(held.dtype), const_value=held)
            self.graph.register_initializer(made)
            self.made[id(tensor)] = made
        return self.made[id(tensor)]
