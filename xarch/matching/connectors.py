"""Built-in connectors; all support any dense layout.

Legend: B samples, P positions, F features in, G features out.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.connector import Connector
from xarch.contracts.objective import MatchContext
from xarch.contracts.options import Options
from xarch.contracts.tap import Tap
from xarch.errors import PlanError
from xarch.matching.objectives.dense import (
    counts_positions,
    feature_letter,
    features,
    mean_over,
    position_letters,
    rows,
)

MODES = ("linear", "bilinear", "trilinear")
"""Interpolation over one, two and three axes of positions."""


class WidthOptions(Options):
    """Options of connectors that change the width."""

    width: int | None = Field(None, ge=1, le=1 << 20, description="output features; default: those of the right side")
    bias: bool = True


class DenseConnector(Connector):
    """Base class of connectors with known input and output widths.

    Attributes:
        own, wanted: input and output features.

    Raises:
        PlanError: the student's value is not a dense tensor with features, or the output width is unknown.
    """

    Options = WidthOptions

    def __init__(self, student: Tap, teacher: Tap | None, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        where = f"matches.{context.match}.through"
        own = features(student) if student.dense else None
        if own is None:
            raise PlanError(
                f"{where}: {student.name} ({student.layout}) has no fixed number of features",
                "connectors need dense taps whose last axis, or C, has a known size",
            )
        wanted = options.width or self.right_width(teacher)
        if wanted is None:
            raise PlanError(f"{where}: the output width is unknown", f"set {where}.options.width")
        self.own, self.wanted = own, int(wanted)

    def right_width(self, teacher: Tap | None) -> int | None:
        """Return the number of features of the right side; labels have none."""
        if not isinstance(teacher, Tap) or not teacher.dense or len(teacher.layout) == 1:
            return None
        is_label = teacher.kind == "data" and len(teacher.layout) < len(self.student_tap.layout)
        return None if is_label else features(teacher)

    def resized(self) -> Tap:
        """Return the student's tap with the new width."""
        tap, letter = self.student_tap, feature_letter(self.student_tap.layout)
        return Tap(tap.name, tap.kind, tap.layout, {**tap.shape, letter: self.wanted}, tap.info)


class LinearOptions(WidthOptions):
    """Options of ``linear``."""

    norm: bool = Field(False, description="normalise each position over its features first")


class Linear(DenseConnector):
    """``linear``: maps F -> G at every position, along the feature axis of any layout."""

    Options = LinearOptions

    def __init__(self, student: Tap, teacher: Tap | None, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self.norm = nn.LayerNorm(self.own) if options.norm else nn.Identity()
        self.linear = nn.Linear(self.own, self.wanted, bias=options.bias)
        self.axis = student.layout.index(feature_letter(student.layout))

    @property
    def tap(self) -> Tap:
        return self.resized()

    def forward(self, value: Tensor, batch: Batch, *, mask: Tensor | None = None) -> Tensor:
        moved = value.movedim(self.axis, -1).to(self.linear.weight.dtype)
        made: Tensor = self.linear(self.norm(moved))
        return made.movedim(-1, self.axis)


class ConvOptions(WidthOptions):
    """Options of ``conv1x1``."""

    norm: Literal["none", "batch"] = Field("none", description="batch: batch normalisation after the convolution")


class Conv1x1(DenseConnector):
    """``conv1x1``: a 1x1 convolution over channels (BCL, BCHW, ...), the regressor of FitNets."""

    Options = ConvOptions

    def __init__(self, student: Tap, teacher: Tap | None, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        axes = len(student.layout) - 2
        if axes not in (1, 2, 3) or student.layout.index(feature_letter(student.layout)) != 1:
            raise PlanError(
                f"matches.{context.match}.through: conv1x1 requires channels before one to three position axes, not "
                f"{student.name} ({student.layout})",
                "`linear` does the same for any layout",
            )
        self.convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](self.own, self.wanted, 1, bias=options.bias)
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        self.norm = norms[axes - 1](self.wanted) if options.norm == "batch" else nn.Identity()

    @property
    def tap(self) -> Tap:
        return self.resized()

    def forward(self, value: Tensor, batch: Batch, *, mask: Tensor | None = None) -> Tensor:
        made: Tensor = self.norm(self.convolution(value.to(self.convolution.weight.dtype)))
        return made


class BridgeOptions(LinearOptions):
    """Options of ``bridge``."""

    resample: bool = Field(True, description="also take the positions to the right side's, where those are declared")


class Bridge(Linear):
    """``bridge``: maps F -> G at every position and then interpolates linearly between positions (BLD, BCL, BCHW, ...)
    to the number of positions that the right side declares."""

    Options = BridgeOptions

    def __init__(self, student: Tap, teacher: Tap | None, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        places = position_letters(student.layout)
        found = teacher.shape if isinstance(teacher, Tap) and teacher.layout == student.layout else {}
        sizes = {letter: found[letter] for letter in places if letter in found}
        fits = options.resample and 0 < len(sizes) == len(places) <= len(MODES)
        self.sizes = sizes if fits and sizes != {letter: student.shape.get(letter) for letter in places} else {}

    @property
    def tap(self) -> Tap:
        made = self.resized()
        return Tap(made.name, made.kind, made.layout, {**made.shape, **self.sizes}, made.info)

    def forward(self, value: Tensor, batch: Batch, *, mask: Tensor | None = None) -> Tensor:
        made = super().forward(value, batch, mask=mask)
        if not self.sizes:
            return made
        moved = F.interpolate(made.movedim(self.axis, 1), tuple(self.sizes.values()), mode=MODES[len(self.sizes) - 1])
        return moved.movedim(1, self.axis)


class Pooled(DenseConnector):
    """Base class: mean over the positions that count; output layout follows the right side's features, e.g. "BK"."""

    fallback = "D"
    """Letter of the features if the right side has none."""

    @property
    def tap(self) -> Tap:
        letter = feature_letter((self.teacher_tap or self.student_tap).layout) or self.fallback
        tap = self.student_tap
        return Tap(tap.name, tap.kind, tap.layout[0] + letter, {letter: self.wanted}, tap.info)

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return counts_positions(student, layout)

    def pooled(self, value: Tensor, mask: Tensor | None) -> Tensor:
        """[B, F]; zeros for a sample of which no position counts."""
        return mean_over(rows(value, self.student_tap.layout), mask)


class Pool(Pooled):
    """``pool``: mean over positions, then F -> G."""

    def __init__(self, student: Tap, teacher: Tap | None, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self.linear = nn.Linear(self.own, self.wanted, bias=options.bias)

    def forward(self, value: Tensor, batch: Batch, *, mask: Tensor | None = None) -> Tensor:
        made: Tensor = self.linear(self.pooled(value, mask))
        return made


class ExitOptions(WidthOptions):
    """Options of ``exit``."""

    width: int | None = Field(
        None, ge=1, le=1 << 20, description="classes; default: those of the right side, else of the data"
    )
    hidden: int = Field(0, ge=0, le=1 << 20, description="width of the hidden layer; 0: none")
    norm: Literal["none", "layer", "batch"] = Field("layer", description="normalisation of the pooled features")
    dropout: float = Field(0.0, ge=0, lt=1)


class Exit(Pooled):
    """``exit``: a small classifier inside the student: pooling, normalisation, an optional hidden layer, classes."""

    Options = ExitOptions
    fallback = "K"

    def __init__(self, student: Tap, teacher: Tap | None, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        norms = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": nn.BatchNorm1d}
        wide = options.hidden or self.own
        hidden = [nn.Linear(self.own, wide), nn.GELU()] if options.hidden else []
        self.before = nn.Sequential(norms[options.norm](self.own), *hidden, nn.Dropout(options.dropout))
        self.linear = nn.Linear(wide, self.wanted, bias=options.bias)

    def right_width(self, teacher: Tap | None) -> int | None:
        return super().right_width(teacher) or self.context.data.get("classes")

    def forward(self, value: Tensor, batch: Batch, *, mask: Tensor | None = None) -> Tensor:
        made: Tensor = self.linear(self.before(self.pooled(value, mask)))
        return made
