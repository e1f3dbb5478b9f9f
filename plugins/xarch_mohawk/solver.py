"""Closed-form fits of one recurrent mixer to the attention it replaces.

Legend: B batch, L tokens, D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, Options, Solver
from xarch_decoder.model.decoder import make_sequence
from xarch_decoder.model.mixer import SequenceInfo
from xarch_mohawk.gate import ConstantGate
from xarch_mohawk.halflife import HALF_LIVES
from xarch_mohawk.mixer import RecurrentMixer
from xarch_mohawk.ridge import ColumnScale, RidgeFit

CHECKED = 8
"""One in this many samples is held out of the fit to evaluate it."""


class SolverOptions(Options):
    """Options of a ``closed_form`` stage."""

    fit: Literal["init", "scale", "refit"] = Field(
        "init",
        description="scale: fit decay and scale per head; refit: fit the output projection; init: both",
    )
    ridge: float = Field(
        0.05, gt=0, description="ridge strength, pulling the output projection toward its current weights"
    )
    half_lives: list[Annotated[float, Field(gt=0, allow_inf_nan=True)]] = Field(
        list(HALF_LIVES),
        min_length=1,
        description="candidate half-lives in tokens, .inf for no decay; one is chosen per head",
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    """Teacher's values for one sample."""

    mixer_in_BLD: Tensor
    mixer_out_BLD: Tensor
    heads_BLHE: Tensor | None
    sequence: SequenceInfo


class HeadsFit(Protocol):
    """Fits the recurrence of every head to the teacher's head."""

    def observe(self, mixer_in_BLD: Tensor, heads_BLHP: Tensor, sequence: SequenceInfo) -> None:
        """Accumulate the tokens of a batch."""

    def solve(self) -> dict[str, float]:
        """Write the solution to the mixer; return figures to log."""


class MixerSolver(Solver):
    """Fits the mixer of one site.

    ``init`` and ``scale`` hold the tokens of all batches until :meth:`solve`, because the projection can be fitted only
    after the heads; ``refit`` keeps only sums. The last eighth of every batch with at least two samples is held out:
    ``relative_error`` is Σ‖error‖ / Σ‖target‖ over its tokens, after and before the fit.

    Args:
        heads: fits the recurrence.
        columns: whether the heads' scales then become factors on the columns of the output projection.
    """

    def __init__(
        self, mixer: RecurrentMixer[Any], site: str, options: SolverOptions, heads: HeadsFit, *, columns: bool
    ) -> None:
        self.mixer, self.site = mixer, site
        self.scales = options.fit in ("init", "scale")
        self.projects = options.fit in ("init", "refit")
        leaves = ["mixer_in", "mixer_out", *(["heads"] if self.scales else [])]
        self.inputs: Collection[str] = [f"{site}.{leaf}" for leaf in leaves]
        self._heads = heads
        self._gate = ConstantGate(mixer) if self.scales and not mixer.holds_gate else None
        self._columns = ColumnScale(mixer.out_proj, mixer.heads) if columns and self.scales else None
        self._ridge = RidgeFit(mixer.out_proj, options.ridge)
        self._held: list[_Sample] = []
        self._checked: list[_Sample] = []
        self._before = _Ratio()

    def observe(self, values: Mapping[str, Any], batch: Batch) -> None:
        with torch.autocast(batch["input_ids"].device.type, enabled=False):
            samples = list(self._samples(values, batch))
            checked = max(len(samples) // CHECKED, 1) if len(samples) > 1 else 0
            for sample in samples[len(samples) - checked :] if checked else samples:
                self._before.add(self._output(sample), sample.mixer_out_BLD)
                self._checked.append(sample)
            for sample in samples[: len(samples) - checked]:
                if sample.heads_BLHE is None:
                    self._count(sample)
                    continue
                if self._gate is not None:
                    self._gate.observe(sample.mixer_in_BLD)
                self._heads.observe(sample.mixer_in_BLD, sample.heads_BLHE, sample.sequence)
                if self.projects or self._columns is not None:
                    self._held.append(sample)

    def solve(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.scales:
            figures = self._heads.solve()
        if self._gate is not None:
            self._gate.solve()
        if self._columns is not None:
            for sample in self._held:
                assert sample.heads_BLHE is not None
                self._columns.observe(self._own_heads(sample), sample.heads_BLHE)
            self._columns.solve()
        if self.projects:
            for sample in self._held:
                self._count(sample)
            self._ridge.solve()
        after = _Ratio()
        for sample in self._checked:
            after.add(self._output(sample), sample.mixer_out_BLD)
        return {"relative_error": after.value, "relative_error_before": self._before.value, **figures}

    def _samples(self, values: Mapping[str, Any], batch: Batch) -> Iterator[_Sample]:
        segments_BL, dtype = batch.get("segment_ids"), self.mixer.in_proj.weight.dtype
        for i in range(len(batch)):
            row = slice(i, i + 1)
            one = {leaf: values[f"{self.site}.{leaf}"][row].to(dtype) for leaf in ("mixer_in", "mixer_out")}
            heads = values[f"{self.site}.heads"][row].to(dtype) if self.scales else None
            sequence = make_sequence(batch["input_ids"][row], None if segments_BL is None else segments_BL[row])
            yield _Sample(one["mixer_in"], one["mixer_out"], heads, sequence)

    def _count(self, sample: _Sample) -> None:
        self._ridge.observe(self._own_heads(sample).flatten(2).flatten(0, 1), sample.mixer_out_BLD.flatten(0, 1))

    def _own_heads(self, sample: _Sample) -> Tensor:
        heads_BLHE: Tensor = self.mixer.inner(sample.mixer_in_BLD, sample.sequence, {"heads"})["heads"]
        return heads_BLHE

    def _output(self, sample: _Sample) -> Tensor:
        output_BLD: Tensor = self.mixer(sample.mixer_in_BLD, sample.sequence)
        return output_BLD


class _Ratio:
    """Σ‖error‖ / Σ‖target‖ over tokens."""

    def __init__(self) -> None:
        self.error = self.target = 0.0

    def add(self, output_BLD: Tensor, target_BLD: Tensor) -> None:
        self.error += float((output_BLD - target_BLD).norm(dim=-1).sum())
        self.target += float(target_BLD.norm(dim=-1).sum())

    @property
    def value(self) -> float:
        return self.error / max(self.target, 1e-12)
