"""Radiance fields: (point, direction) -> (density, colour), how they are marched, rendered and exported.

Names resolve on first use, so registering the family imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xarch import hookimpl

_PUBLIC = {
    "Camera": "xarch_field.cameras",
    "look_at": "xarch_field.cameras",
    "sphere_pose": "xarch_field.cameras",
    "PointsGraph": "xarch_field.export_graphs",
    "RaysGraph": "xarch_field.export_graphs",
    "example_points": "xarch_field.export_graphs",
    "forms_of": "xarch_field.export_graphs",
    "FeatureField": "xarch_field.field",
    "RadianceField": "xarch_field.field",
    "named_tensors": "xarch_field.field",
    "FEATURES": "xarch_field.head",
    "ColourHead": "xarch_field.head",
    "PlainMLP": "xarch_field.head",
    "spherical_harmonics": "xarch_field.head",
    "trunc_exp": "xarch_field.head",
    "RayPoints": "xarch_field.rendering",
    "composite": "xarch_field.rendering",
    "march": "xarch_field.rendering",
    "ray_points": "xarch_field.rendering",
    "render": "xarch_field.rendering",
}

__all__ = [*_PUBLIC, "xarch_register"]


@hookimpl
def xarch_register(registry: Any) -> None:
    """The family brings classes to build on; sources, data and targets that use it are registered by their plugins."""


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'xarch_field' has no attribute {name!r}")


if TYPE_CHECKING:
    from xarch_field.cameras import Camera, look_at, sphere_pose
    from xarch_field.export_graphs import PointsGraph, RaysGraph, example_points, forms_of
    from xarch_field.field import FeatureField, RadianceField, named_tensors
    from xarch_field.head import FEATURES, ColourHead, PlainMLP, spherical_harmonics, trunc_exp
    from xarch_field.rendering import RayPoints, composite, march, ray_points, render
