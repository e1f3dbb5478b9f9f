"""What leaves for the edge: graphs to export and the profile of the place they go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.bench import Call


@dataclass(frozen=True)
class Profile:
    """Limits of a deployment target.

    Attributes:
        name: e.g. "cpu".
        provider: onnxruntime execution provider.
        max_opset, max_ir: highest versions its runtime reads.
        static: every dimension must be fixed.
        allowed_ops: the operators it runs; None means any of the standard domain.
        forbidden_ops: operators that must not appear.
        max_rank: highest tensor rank.
        dtype: type of the weights: "float32"; "float16" (weights and matrix products, all else float32); "int8"
            (weights and inputs of matrix products, calibrated on held-out data).
        index_dtype: integers that graphs compute with, "int64" or "int32"; shapes and axes are 64-bit constants always.
        lowerings: order of preference where an operation has several graph forms (``xarch.kernels.FORMS``), and names
            of further rewrites of ``xarch.export.lowerings`` that it wants although it has the operators.
    """

    name: str
    provider: str
    max_opset: int
    max_ir: int
    static: bool = False
    allowed_ops: frozenset[str] | None = None
    forbidden_ops: frozenset[str] = frozenset()
    max_rank: int | None = None
    dtype: str = "float32"
    index_dtype: str = "int64"
    lowerings: tuple[str, ...] = ()
    summary: str = ""

    def allows(self, *ops: str) -> bool:
        """Whether all of these operators may appear."""
        return not self.forbidden_ops & set(ops) and (self.allowed_ops is None or self.allowed_ops >= set(ops))


@dataclass(frozen=True)
class Throughput:
    """Work done by one call of a graph, so that throughput can be reported per unit.

    Attributes:
        unit: e.g. "points".
        amount: units of a call when it is measured.
        sizes: symbol of a free dimension -> its size when it is measured; others are 1.
    """

    unit: str
    amount: int
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass
class ExportGraph:
    """One graph: a module called with positional tensors, returning a tuple of tensors.

    Attributes:
        name: file stem, e.g. "decode_1".
        module: called as ``module(*inputs.values())`` without gradients.
        inputs: input name -> example tensor, in call order.
        outputs: names of the returned tensors, in order.
        dynamic: input name -> {dimension: symbol} for dimensions that stay free.
        metadata: facts a user of the file needs; goes into the model's ``metadata_props``.
        throughput: work done by one call, if it is a number of equal things.
        reads: input name -> batch key it takes. With ``gives`` the engine proves the graph itself: it computes the
            student's taps on held-out batches of several sizes and compares. The student is given these keys and no
            others. An input with one dimension less than the batch's tensor takes what all samples share. Inputs left
            out keep their example.
        gives: output name -> student tap it must reproduce; a structured value offers ``full()`` for its dense form.
        variant: operating point of the student it belongs to, see ``Student.variants``; "" for the student itself.
        top1: name of an output whose last axis is a distribution; agreement of the arg-max is reported for it.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    throughput: Throughput | None = None
    reads: Mapping[str, str] = field(default_factory=dict)
    gives: Mapping[str, str] = field(default_factory=dict)
    variant: str = ""
    top1: str = ""


@dataclass(frozen=True)
class Measure:
    """A figure of a whole case, for what its outputs one by one do not say: PSNR of a picture, errors of a transcript.

    Attributes:
        name: e.g. "psnr".
        value: (outputs seen, outputs expected) -> the figure.
        minimum, maximum: limits of the gate; without either the figure is only reported.
        unit: e.g. "dB".
    """

    name: str
    value: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], float]
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""

    def holds(self, figure: float) -> bool:
        """Whether ``figure`` lies within the limits; NaN never does."""
        above = self.minimum is None or figure >= self.minimum
        below = self.maximum is None or figure <= self.maximum
        return above and below and figure == figure


@dataclass
class ParityCase:
    """A comparison between the student in torch and its exported graphs in a runtime, on top of the engine's own.

    ``expected`` comes from the author, so such a case alone never proves a graph: every exported graph needs ``reads``
    and ``gives``, or a case whose ``taps`` let the engine compute what is expected.

    A case may drive several calls (a prompt cut into prefill and decode calls), so it is a procedure rather than a
    pair of tensors.

    Attributes:
        graph: the graph the result is credited to in ``parity.json``.
        shape: what identifies the case, e.g. ``{"batch": 1, "tokens": 77}``.
        drive: runs the graphs through a :data:`Call` and returns named outputs.
        expected: the student's own outputs under the same names.
        top1: name of an output whose last axis is a distribution; arg-max agreement is reported for it.
        measures: further figures of the case, gated by limits of their own.
        batch, taps: where given, the engine itself computes what ``taps`` names (output name -> student tap) on this
            batch; ``expected`` then holds the other outputs, if any.
        positions: output name -> (axis, indices): the places of the tap that ``drive`` returns, where it is not all
            of them (a prompt read in pieces gives the last position of each).
        rel_l2: largest relative deviation of its outputs, in place of the limit that goes with the profile's dtype.
    """

    graph: str
    shape: dict[str, int]
    drive: Callable[[Call], dict[str, np.ndarray]]
    expected: dict[str, np.ndarray] = field(default_factory=dict)
    top1: str | None = None
    measures: Sequence[Measure] = ()
    rel_l2: float | None = None
    batch: Batch | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, tuple[int, Sequence[int]]] = field(default_factory=dict)
