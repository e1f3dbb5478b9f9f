"""Pictures: labelled or not, from folders, Parquet, CIFAR, IDX and NPZ files (``images:``), and the step ``cutmix``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xarch import hookimpl

DIGITS = Path(__file__).parent / "recipes" / "digits.safetensors"
"""Weights that the recipe `digits-teacher` made."""


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
    registry.teacher(
        "digits",
        ref=f"timm:convnext_atto?checkpoint={DIGITS}&size=16&channels=1&patch_size=1&depths=1,1,1,1&dims=16,32,48,64",
        summary="small ConvNeXt for the digits of scikit-learn, 98 % right",
    )
    for name, summary in (
        ("digits-teacher", "makes the teacher of ofa-demo"),
        ("ofa-demo", "demo: a convolutional teacher of digits to an MLP-Mixer that is given 100 labels"),
    ):
        registry.recipe(name, load=f"xarch_pictures:recipes/{name}.yaml", summary=summary)
