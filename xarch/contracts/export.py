"""Export: the graphs of a student, and the profile of the deployment target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
        max_opset, max_ir: highest versions its runtime supports.
        static: whether every dimension must be fixed.
        allowed_ops: supported operators; None means any of the standard domain.
        forbidden_ops: operators that must not appear.
        max_rank: highest tensor rank.
        dtype: type of the weights: "float32"; "float16" (weights and matrix products, the rest float32); "int8"
            (weights and inputs of matrix products, calibrated on held-out data; weights only, in blocks, of graphs that
            ask for it); "int4" (weights only, in blocks).
        integers: 8-bit forms to try: "static" (products with calibrated ranges, float32 between them), "activations"
            (calibrated ranges everywhere) or "dynamic" (products with ranges measured by each call); of several, the
            export keeps what measures best.
        index_dtype: integer type that graphs compute with, "int64" or "int32"; shapes and axes are always 64-bit
            constants.
        runtime_ops: operators of the runtime's own that it may use, as "DOMAIN::NAME".
        lowerings: preferred graph forms in order, where an operation has several (``xarch.kernels.FORMS``), and names
            of rewrites of ``xarch.export.lowerings`` to apply even though the operators are supported.
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
    integers: tuple[str, ...] = ("static",)
    index_dtype: str = "int64"
    runtime_ops: frozenset[str] = frozenset()
    lowerings: tuple[str, ...] = ()
    summary: str = ""

    def allows(self, *ops: str) -> bool:
        """Return whether all of these operators are allowed."""
        return not self.forbidden_ops & set(ops) and (self.allowed_ops is None or self.allowed_ops >= set(ops))


@dataclass(frozen=True)
class Throughput:
    """Work done by one call of a graph, so that throughput can be reported per unit.

    Attributes:
        unit: e.g. "points".
        amount: units per call when measured.
        sizes: symbol of a free dimension -> its size when measured; others are 1.
    """

    unit: str
    amount: int
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Runner:
    """A program that runs the graphs of an export from their own folder, without xarch and torch.

    Attributes:
        program: the Python file, copied beside the graphs. Called without options that name a folder, it reads its own.
        usage: example of its arguments, as typed in a shell.
        packages: what it imports besides the standard library, as pip names it.
        files: names of files of the student's folder that it reads too (a tokenizer); those that exist are copied.
    """

    program: Path
    usage: str
    packages: Sequence[str]
    files: Sequence[str] = ()


@dataclass
class ExportGraph:
    """One graph: a module called with positional tensors, returning a tuple of tensors.

    Attributes:
        name: file stem, e.g. "decode_1".
        module: called as ``module(*inputs.values())`` without gradients.
        inputs: input name -> example tensor, in call order.
        outputs: names of the returned tensors, in order.
        dynamic: input name -> {dimension: symbol} for dynamic dimensions.
        metadata: facts that users of the file need; stored in the model's ``metadata_props``.
        throughput: work done by one call, if it is a count of equal units.
        reads: input name -> batch key. With ``gives``, the engine verifies the graph itself: it computes the student's
            taps on held-out batches of several sizes and compares. The student receives these keys only. An input with
            one dimension less than the batch tensor takes the value shared by all samples. Inputs not listed keep their
            example value. ``student:TAP`` is an input that the caller of the file prepares (a resized picture): the
            value of that tap of the student, which then receives whole batches.
        gives: output name -> student tap that it must reproduce; a structured value provides ``full()``, its dense
            form.
        variant: operating point of the student that it implements, see ``Student.variants``; "" for the student itself.
        top1: name of an output whose last axis is a distribution; its arg-max agreement is reported.
        weight_only: whether a profile of few bits stores only weights so, where its runtime can: products of few rows
            wait for the bytes of weights, and inputs that pass through states gather errors. Their products are MatMul
            nodes where shapes are free, which other tools find.
        counts: input name -> symbol of the free dimension whose size the input's value is in every call: a position
            after a cache.
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
    weight_only: bool = False
    counts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """Figure over a whole case, for properties that single outputs do not show: PSNR of an image, errors of a
    transcript.

    Attributes:
        name: e.g. "psnr".
        value: (actual outputs, expected outputs) -> the figure.
        minimum, maximum: limits of the gate; without limits the figure is only reported.
        unit: e.g. "dB".
    """

    name: str
    value: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], float]
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""

    def holds(self, figure: float) -> bool:
        """Return whether ``figure`` is within the limits; NaN never is."""
        above = self.minimum is None or figure >= self.minimum
        below = self.maximum is None or figure <= self.maximum
        return above and below and figure == figure


@dataclass(frozen=True)
class Divergence:
    """How far a student's predictions are from those that it had when this was made.

    Attributes:
        measure: returns the present figure; an export calls it while some of the weights are rounded.
        most: figure up to which weights keep the few bits of a profile.
        unit: e.g. "nats/token".
    """

    measure: Callable[[], float]
    most: float
    unit: str = ""


@dataclass
class ParityCase:
    """Comparison between the student in torch and its exported graphs in a runtime, in addition to the engine's own.

    ``expected`` is supplied by the author, so a case alone never verifies a graph: every exported graph needs ``reads``
    and ``gives``, or a case whose ``taps`` let the engine compute the expected outputs. A case may make several calls
    (a prompt split into prefill and decode calls), so it is a procedure rather than a pair of tensors.

    Attributes:
        graph: the graph that the result is recorded under in ``parity.json``.
        shape: sizes that identify the case, e.g. ``{"batch": 1, "tokens": 77}``.
        drive: runs the graphs through a :data:`Call` and returns named outputs.
        expected: the student's own outputs under the same names.
        top1: name of an output whose last axis is a distribution; its arg-max agreement is reported.
        measures: further figures of the case, each with its own limits.
        batch, taps: if given, the engine computes the student taps in ``taps`` (output name -> student tap) on this
            batch; ``expected`` then holds the remaining outputs, if any.
        positions: output name -> (axis, indices): the positions of the tap that ``drive`` returns, if not all (a prompt
            read in chunks returns the last position of each).
        rel_l2: largest relative deviation of its outputs, overriding the default for the profile's dtype.
        least_top1: smallest share of its graph's rows with the same arg-max, overriding the default, where rounding
            decides between near ties (a choice of entries). The smallest of a graph's cases counts.
    """

    graph: str
    shape: dict[str, int]
    drive: Callable[[Call], dict[str, np.ndarray]]
    expected: dict[str, np.ndarray] = field(default_factory=dict)
    top1: str | None = None
    measures: Sequence[Measure] = ()
    rel_l2: float | None = None
    least_top1: float | None = None
    batch: Batch | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, tuple[int, Sequence[int]]] = field(default_factory=dict)
