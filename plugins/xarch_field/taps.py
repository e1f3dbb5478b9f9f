"""Taps of every radiance field, and the cost of evaluating one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch import Tap
from xarch_field.model.head import FEATURES

FAMILY = "radiance-field"
EMPTY, EMPTY_EDITED = -2.0, -4.0
"""Log-density at or below which a point counts as empty, in a trained field and in an edited one."""
POINT_WORK = 50_000
"""Multiply-adds that take about as long as evaluating a small field at a point."""
OCCUPIED = 0.15
"""Share of a ray's samples that lie in occupied cells, for time estimates."""


def evaluated(sample: Mapping[str, Any], samples: int) -> float:
    """Return the number of points evaluated for one point or ray."""
    return 1.0 if sample.get("kind") == "points" else OCCUPIED * samples


def field_taps(*, feature: bool, samples: int, empty: float = EMPTY) -> dict[str, Tap]:
    """Return the taps of a field; N points, R rays, K samples per ray, F feature, C colour."""
    density = {"clipped": False, "empty": empty}
    taps = [Tap("points.feature", "volume", "NF", {"F": FEATURES})] if feature else []
    taps += [
        Tap("points.sigma_raw", "point", "N", info=density),
        Tap("points.sigma", "point", "N", info={"clipped": True, "per": "world unit"}),
        Tap("points.rgb", "point", "NC", {"C": 3}),
        Tap("points.opacity", "point", "N"),
        Tap("samples.sigma_raw", "ray", "RK", {"K": samples}, density),
        Tap("samples.rgb", "ray", "RKC", {"K": samples, "C": 3}),
        Tap("samples.weight", "ray", "RK", {"K": samples}),
        Tap("rays.rgb", "ray", "RC", {"C": 3}),
        Tap("rays.acc", "ray", "R"),
        Tap("rays.depth", "ray", "R"),
    ]
    return {t.name: t for t in taps}
