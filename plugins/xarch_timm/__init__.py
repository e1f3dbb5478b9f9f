"""Image classifiers of timm: as teachers (``timm:NAME?checkpoint=FILE``) and as students."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the source and the target without heavy imports."""
    needs = ("torch", "timm")
    registry.source(
        "timm",
        load="xarch_timm.source:TimmSource",
        produces="image",
        needs=needs,
        summary="image classifier of timm: timm:NAME?checkpoint=FILE, with &size=32 and further arguments",
    )
    registry.target(
        "timm",
        load="xarch_timm.target:TimmTarget",
        accepts=["image"],
        produces="image",
        needs=needs,
        summary="any image classifier of timm: timm:NAME",
        recipes=["ofa-kd", "kd", "no-teacher"],
        profiles=["cpu"],
        reference="model",
    )
