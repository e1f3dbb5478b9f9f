"""Radiance fields, (point, direction) -> (density, colour): marching, rendering and export.

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
    "PointsGraph": "xarch_field.export",
    "RaysGraph": "xarch_field.export",
    "example_points": "xarch_field.export",
    "forms_of": "xarch_field.export",
    "packs": "xarch_field.export",
    "FeatureField": "xarch_field.model.field",
    "RadianceField": "xarch_field.model.field",
    "named_tensors": "xarch_field.model.field",
    "FEATURES": "xarch_field.model.head",
    "ColourHead": "xarch_field.model.head",
    "PlainMLP": "xarch_field.model.head",
    "spherical_harmonics": "xarch_field.model.head",
    "trunc_exp": "xarch_field.model.head",
    "RayPoints": "xarch_field.model.rendering",
    "composite": "xarch_field.model.rendering",
    "march": "xarch_field.model.rendering",
    "ray_points": "xarch_field.model.rendering",
    "render": "xarch_field.model.rendering",
}

__all__ = [*_PUBLIC, "xarch_register"]


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the family; sources, data and targets of fields are registered by other plugins."""
    registry.family("radiance-field", load="xarch_field.family:FieldFamily", summary="density and colour of a scene")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'xarch_field' has no attribute {name!r}")


if TYPE_CHECKING:
    from xarch_field.cameras import Camera, look_at, sphere_pose
    from xarch_field.export import PointsGraph, RaysGraph, example_points, forms_of, packs
    from xarch_field.model.field import FeatureField, RadianceField, named_tensors
    from xarch_field.model.head import FEATURES, ColourHead, PlainMLP, spherical_harmonics, trunc_exp
    from xarch_field.model.rendering import RayPoints, composite, march, ray_points, render
