"""Pictures: labelled or not, from folders, Parquet, CIFAR, IDX and NPZ files (``images:``), and the step ``cutmix``."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the data provider and the batch step without heavy imports."""
    registry.data(
        "images",
        load="xarch_pictures.provider:PictureData",
        summary="pictures from images:FOLDER (classes as sub-folders), Parquet, CIFAR, IDX or NPZ files, images:digits",
        needs=("torch", "pydantic"),
    )
    registry.batch_step(
        "cutmix",
        load="xarch_pictures.cutmix:CutMix",
        summary="pastes a box of another picture, and shares the labels by its area; or mixup, at random",
        needs=("torch", "pydantic"),
    )
