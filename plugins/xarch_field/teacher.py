"""Fields with taps at points, along rays and in the image, and a field as a teacher.

A batch holds either points (``xyz``, ``dirs``) or rays (``origins``, ``dirs``, ``background``, ``jitter``; its facts
include ``samples`` if it differs from the scene's). Samples on a ray depend only on the ray, the box and the occupancy,
which a student inherits: both sides are evaluated at the same points.

Legend: N points, R rays, K samples on a ray.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from xarch import Batch, Sink, Tap, TapModel, Teacher
from xarch_field.facts import FieldFacts
from xarch_field.model.field import RadianceField
from xarch_field.model.rendering import ray_points, ray_weights
from xarch_field.taps import FAMILY, evaluated, field_taps

READ_WORK = 50
"""Multiply-adds that take as long as reading one value of a grid."""


class FieldModel(TapModel):
    """A field with taps.

    Args:
        field: the field itself.
        facts: box, cameras and samples of the scene.
    """

    family = FAMILY
    module: RadianceField
    facts: FieldFacts

    def __init__(self, field: RadianceField, facts: FieldFacts) -> None:
        self.module, self.facts = field, facts
        corners = torch.tensor(facts.aabb)
        self.step = float((corners[1] - corners[0]).norm()) / facts.samples
        """Return the length of a sample, for the opacity of a point."""

    @property
    def field(self) -> RadianceField:
        """Return the field."""
        return self.module

    @property
    def has_feature(self) -> bool:
        """Return whether :meth:`query` supports the 16-value feature."""
        return self.field.has_feature

    def query(self, x_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        """Return values at world points, see :meth:`RadianceField.query`; a teacher may derive some of them."""
        return self.field.query(x_N3, d_N3, want)

    def blocks(self, wanted: Collection[str]) -> Mapping[str, Mapping[str, Tensor]]:
        """Return blocks that a student of equal shape may inherit, see :meth:`RadianceField.state_blocks`."""
        return {name: block for name, block in self.field.state_blocks().items() if name in wanted}

    def taps(self) -> Mapping[str, Tap]:
        return field_taps(feature=self.has_feature, samples=self.facts.samples, empty=self.facts.empty)

    def work(self, sample: Mapping[str, Any]) -> float:
        groups, sizes = self.field.param_groups(), {n: p.numel() for n, p in self.field.named_parameters()}
        layers = sum(sizes[n] for n in groups.get("net", ()))
        return (layers + READ_WORK * self.field.grid_reads()) * evaluated(sample, self.facts.samples)

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        at_points = {w for w in wanted if w.startswith("points.")}
        if at_points:
            self._points(batch, at_points, sink)
        if len(at_points) < len(wanted):
            self._rays(batch, set(wanted) - at_points, sink)

    def _points(self, batch: Batch, wanted: set[str], sink: Sink) -> None:
        names = {w.removeprefix("points.") for w in wanted}
        ask = (names - {"opacity"}) | ({"sigma_raw"} if "opacity" in names else set())
        values = self.query(batch["xyz"], batch["dirs"] if "rgb" in ask else None, ask)
        if "opacity" in names:
            values["opacity"] = 1 - torch.exp(-self.field.density(values["sigma_raw"]) * self.step)
        for name in names:
            sink(f"points.{name}", values[name])

    def _rays(self, batch: Batch, wanted: set[str], sink: Sink) -> None:
        samples = batch.meta.get("samples", self.facts.samples)
        points = ray_points(self.field, batch["origins"], batch["dirs"], samples, batch.get("jitter"))
        values = self.field.query(points.x_N3, points.d_N3, ("sigma_raw", "rgb"))
        for name in ("sigma_raw", "rgb"):
            if f"samples.{name}" in wanted:
                sink(f"samples.{name}", points.unpack(values[name]))
        if wanted <= {"samples.sigma_raw", "samples.rgb"}:
            return
        sigma_N = self.field.density(values["sigma_raw"])
        if "samples.weight" in wanted:
            sink("samples.weight", ray_weights(points.unpack(sigma_N) * points.delta_RK)[0])
        rgb, acc, depth = points.composite(sigma_N, values["rgb"], batch["background"])
        for name, value in (("rays.rgb", rgb), ("rays.acc", acc), ("rays.depth", depth)):
            if name in wanted:
                sink(name, value)


class FieldTeacher(FieldModel, Teacher):
    """A trained, frozen field."""

    def __init__(self, field: RadianceField, facts: FieldFacts, *, ref: str, fingerprint: str) -> None:
        super().__init__(field, facts)
        self.ref, self.fingerprint = ref, fingerprint

    def weights(self) -> Mapping[str, Tensor]:
        return self.field.state_dict()
