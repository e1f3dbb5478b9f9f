"""Inputs of a graph cut and joined from held-out batches, at several sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph
from xarch.matching.references import STUDENT

SIZES = (1, 2, 5)
"""Batch sizes of calls with a free number of samples."""
MANY = 64
"""Maximum batch size of one further call."""


def prepared_by(key: str) -> str | None:
    """Return the student's tap behind a key of ``ExportGraph.reads``, None for a batch key."""
    model, _, tap = key.rpartition(":")
    return tap if model == STUDENT else None


@dataclass(frozen=True)
class Cut:
    """Inputs of one call.

    Attributes:
        shape: sizes of the call, for ``parity.json``.
        inputs: inputs of the graph, by name.
        batch: the same values for the student, under the keys the graph reads.
    """

    shape: dict[str, int]
    inputs: dict[str, np.ndarray]
    batch: Batch


def group(batches: Sequence[Batch]) -> Batch:
    """Join the samples of equal shape across batches; return the largest such group."""
    groups: dict[tuple[tuple[int, ...], ...], list[Batch]] = {}
    for batch in batches:
        groups.setdefault(tuple(tuple(t.shape[1:]) for t in batch.tensors.values()), []).append(batch)
    chosen = max(groups.values(), key=lambda members: sum(map(len, members)))
    joined = {k: torch.cat([b[k] for b in chosen]) for k in chosen[0].tensors}
    return Batch(joined, sum(map(len, chosen)), chosen[0].meta)


def cuts(graph: ExportGraph, samples: Batch) -> Iterator[Cut]:
    """Yield calls of ``graph`` on ``samples``: 1, 2, 5 and many of them, then with its other free dimensions cut to
    an odd size. A graph with static shapes gets calls of its fixed size.

    Raises:
        ValueError: no sample fits the graph, with the reason.
    """
    shared = [name for name, key in graph.reads.items() if graph.inputs[name].ndim == samples[key].ndim - 1]
    samples = _alike(samples, [graph.reads[name] for name in shared])
    own = [name for name in graph.reads if name not in shared]
    fixed = {len(graph.inputs[name]) for name in own if 0 not in graph.dynamic.get(name, {})}
    if len(fixed) > 1:
        raise ValueError(f"its inputs have different numbers of samples per call: {sorted(fixed)}")
    total, free = len(samples), {s for name in own for a, s in graph.dynamic.get(name, {}).items() if a}
    if fixed:
        size = fixed.pop()
        starts = sorted({min(i * size, max(total - size, 0)) for i in range(len(SIZES))})
        rows = [(start + torch.arange(size)) % total for start in starts]
    else:
        rows = [_spread(total, size) for size in (*SIZES, *([min(total, MANY)] if total > SIZES[-1] else []))]
    for chosen in rows:
        yield _cut(graph, samples, chosen, shared, odd=False)
    if free:
        yield _cut(graph, samples, rows[min(1, len(rows) - 1)], shared, odd=True)


def _alike(samples: Batch, keys: Sequence[str]) -> Batch:
    """Return the samples whose values of ``keys`` equal those of the first one."""
    same = torch.ones(len(samples), dtype=torch.bool)
    for key in keys:
        same &= (samples[key] == samples[key][:1]).flatten(1).all(1).cpu()
    rows = same.nonzero()[:, 0]
    return Batch({k: v[rows.to(v.device)] for k, v in samples.tensors.items()}, len(rows), samples.meta)


def _spread(total: int, size: int) -> Tensor:
    """Return ``size`` rows spread over all, repeated if there are fewer."""
    if size == 1:
        return torch.tensor([total // 2])
    return torch.linspace(0, total - 1, size).long() if size <= total else torch.arange(size) % total


def _cut(graph: ExportGraph, samples: Batch, rows: Tensor, shared: Sequence[str], *, odd: bool) -> Cut:
    tensors, inputs, sizes = {}, {}, dict[str, int]()
    for name, key in graph.reads.items():
        value = samples[key][rows.to(samples[key].device)]
        tensors[key] = value = _fitted(graph, name, value, sizes, shift=name in shared, odd=odd)
        example = graph.inputs[name]
        if value.is_floating_point() != example.is_floating_point():
            raise ValueError(f"its input {name!r} is {example.dtype}, but the batch's {key!r} is {value.dtype}")
        inputs[name] = (value[0] if name in shared else value).to(example.dtype).cpu().numpy()
    for name, example in graph.inputs.items():
        if name not in graph.reads:
            inputs[name] = resized(example, graph.dynamic.get(name, {}), sizes).cpu().numpy()
    if any(prepared_by(key) for key in graph.reads.values()):
        tensors = {k: v[rows.to(v.device)] for k, v in samples.tensors.items() if not prepared_by(k)}
    shape = {"samples": len(rows), **sizes}
    ordered = {name: inputs[name] for name in graph.inputs}
    return Cut(shape, ordered, Batch(tensors, len(rows), samples.meta))


def _fitted(graph: ExportGraph, name: str, value: Tensor, sizes: dict[str, int], *, shift: bool, odd: bool) -> Tensor:
    """Cut ``value`` to the fixed dimensions of an input; sizes of free dimensions are added to ``sizes``.

    Raises:
        ValueError: it has other dimensions, or too few values along one.
    """
    example, dims = graph.inputs[name], graph.dynamic.get(name, {})
    if value.ndim != example.ndim + shift:
        raise ValueError(f"its input {name!r} has {example.ndim} dimensions, but the batch's tensor has {value.ndim}")
    for axis, size in enumerate(example.shape):
        if axis in dims:
            whole = (axis == 0 and not shift) or not odd
            length = value.shape[axis + shift]
            size = sizes.setdefault(dims[axis], length if whole else max(1, length // 2 - 1 | 1))
        elif axis == 0 and not shift:
            continue
        have = value.shape[axis + shift]
        if have < size:
            raise ValueError(f"its input {name!r} takes {size} values along dimension {axis}, but samples have {have}")
        value = value.narrow(axis + shift, 0, size)
    return value


def resized(value: Tensor, dims: Mapping[int, str], sizes: Mapping[str, int]) -> Tensor:
    """Cut or repeat the free dimensions of an example to ``sizes``, so that values stay in their range."""
    for axis, symbol in dims.items():
        size = sizes.get(symbol, value.shape[axis])
        index = torch.arange(size, device=value.device) % value.shape[axis]
        value = value.index_select(axis, index)
    return value
