"""Radiance fields: (point, direction) -> (density, colour), how they are marched, rendered and exported."""

from __future__ import annotations

from xarch.families.field.cameras import Camera, look_at, sphere_pose
from xarch.families.field.export_graphs import PointsGraph, RaysGraph, example_points, forms_of
from xarch.families.field.field import FeatureField, RadianceField, named_tensors
from xarch.families.field.head import FEATURES, ColourHead, PlainMLP, spherical_harmonics, trunc_exp
from xarch.families.field.rendering import RayPoints, composite, march, ray_points, render

__all__ = [
    "FEATURES",
    "Camera",
    "ColourHead",
    "FeatureField",
    "PlainMLP",
    "PointsGraph",
    "RadianceField",
    "RayPoints",
    "RaysGraph",
    "composite",
    "example_points",
    "forms_of",
    "look_at",
    "march",
    "named_tensors",
    "ray_points",
    "render",
    "sphere_pose",
    "spherical_harmonics",
    "trunc_exp",
]
