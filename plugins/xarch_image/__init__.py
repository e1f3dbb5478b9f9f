"""Image classifiers: facts, taps, model base, class groups, metric, report sections and test fixtures of the family.

Names resolve on first use, so registering the family imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xarch import hookimpl

_PUBLIC = {
    "Feature": "xarch_image.facts",
    "ImageFacts": "xarch_image.facts",
    "class_groups": "xarch_image.groups",
    "HeadModel": "xarch_image.model",
    "ImageModel": "xarch_image.model",
    "adapt": "xarch_image.model",
    "normalise": "xarch_image.model",
}

__all__ = [*_PUBLIC, "xarch_register"]


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the family and its metric; sources, data and targets are registered by other plugins."""
    registry.family("image", load="xarch_image.family:ImageFamily", summary="image classifiers")
    registry.metric(
        "top1",
        load="xarch_image.metric:Top1",
        accepts=["image"],
        summary="share of images classified correctly; top-5, balanced, per class group",
    )
    registry.stage(
        "fuse",
        load="xarch_image.fusion:Fuse",
        summary="choose on validation pictures how much each of two classifiers counts",
    )


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'xarch_image' has no attribute {name!r}")


if TYPE_CHECKING:
    from xarch_image.facts import Feature, ImageFacts
    from xarch_image.groups import class_groups
    from xarch_image.model import HeadModel, ImageModel, adapt, normalise
