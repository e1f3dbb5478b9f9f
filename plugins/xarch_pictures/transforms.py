"""From a stored picture to a tensor: crops and flips on tensors, everything else by timm's transforms."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xarch_pictures.options import Augment

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""Nothing is normalised: each model does that for itself."""
PHOTO_CROP = 0.875
REDRAWS = 4


class Transform(Protocol):
    """From a picture of Pillow, or uint8 [C,H,W], to [C,H,W], uint8 or float32 in 0..1.

    Attributes:
        random: whether it draws from the generator.
    """

    random: bool

    def __call__(self, picture: Any, generator: torch.Generator) -> Tensor: ...


class Light:
    """Pads, crops and mirrors uint8 tensors [C,H,W] that have the right size; others are left to timm."""

    def __init__(self, size: int, channels: int, augment: Augment | None) -> None:
        self.size, self.channels, self.augment, self.shape = size, channels, augment, (size, size)
        self.pad = augment.pad if augment is not None and augment.crop == "pad" else 0
        self.flip = augment.flip if augment is not None else 0.0
        self.random = bool(self.pad or self.flip)

    def __call__(self, picture: Any, generator: torch.Generator) -> Tensor:
        if not isinstance(picture, Tensor) or picture.shape[-2:] != self.shape:
            return (self._others(picture, generator) * 255).round().byte()
        if self.random:
            down, across, mirrored = torch.rand(3, generator=generator).tolist()
            height, width = self.shape
            if self.pad:
                y, x = int(down * (2 * self.pad + 1)), int(across * (2 * self.pad + 1))
                picture = F.pad(picture, [self.pad] * 4)[:, y : y + height, x : x + width]
            if mirrored < self.flip:
                picture = picture.flip(-1)
        return picture

    @cached_property
    def _others(self) -> Transform:
        return Timm(self.size, self.channels, self.augment, 1.0)  # imports timm, which takes seconds


class Timm:
    """timm's transforms, with every random number drawn from the sample's generator.

    Args:
        augment: None for the evaluation transform: the shorter side is resized, and the middle is cut out.
        crop_share: share of the shorter side that is kept in evaluation.
    """

    def __init__(self, size: int, channels: int, augment: Augment | None, crop_share: float) -> None:
        from timm.data import create_transform
        from torchvision import transforms as T

        self.channels, self.random = channels, augment is not None
        self.grey = augment is not None and channels == 1 and bool(augment.auto or augment.colour)
        if augment is None:
            self.run = create_transform(
                (channels, size, size), crop_pct=crop_share, interpolation="bicubic", **self._unit()
            )
            return
        place, look, last = create_transform(
            (channels, size, size),
            is_training=True,
            scale=augment.scale,
            hflip=augment.flip,
            color_jitter=augment.colour,
            auto_augment=augment.auto,
            interpolation="bicubic",
            re_prob=augment.erase,
            separate=True,
            **self._unit(),
        )
        if augment.crop != "resized":
            kept = [T.Resize(size, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(size)]
            moved = [T.RandomCrop(size, padding=augment.pad)] if augment.crop == "pad" else []
            place = T.Compose([*kept, *moved, T.RandomHorizontalFlip(augment.flip)])
        self.run = T.Compose([place, *([_colour] if self.grey else []), look, last])

    def _unit(self) -> dict[str, Any]:
        return {key: value[: self.channels] if not self.grey else value for key, value in UNIT.items()}

    def __call__(self, picture: Any, generator: torch.Generator) -> Tensor:
        if isinstance(picture, Tensor):
            picture = _image(picture)
        if not self.random:
            return self.run(picture).clamp_(0, 1)
        with _drawn_from(generator):
            for _ in range(REDRAWS):
                # timm's "posterize" may keep 0 bits, which Pillow refuses.
                with contextlib.suppress(ValueError):
                    return self._drawn(picture)
            return self._drawn(picture)

    def _drawn(self, picture: Any) -> Tensor:
        made = self.run(picture).clamp_(0, 1)
        return luma(made) if self.grey else made


def _image(picture: Tensor) -> Any:
    from PIL import Image

    array = picture.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else np.ascontiguousarray(array))


def _colour(picture: Any) -> Any:
    return picture.convert("RGB")  # timm's operations need three channels


@contextlib.contextmanager
def _drawn_from(generator: torch.Generator) -> Iterator[None]:
    """Seed the global generators that timm and torchvision use, and set them back: training draws from them too."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(torch.randint(2**62, (), generator=generator))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def resized(pictures: Tensor, size: int, most: int) -> Tensor:
    """Return uint8 [N,C,H,W] at ``size`` by ``size`` if they are square and the result has at most ``most`` bytes."""
    count, channels, height, width = pictures.shape
    if height != width or height == size or count * channels * size * size > most:
        return pictures
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bicubic", antialias=True).round_().clamp_(0, 255).byte()
        for part in pictures.split(4096)
    ]
    return torch.cat(parts)


def as_channels(picture: Tensor, channels: int) -> Tensor:
    """Return uint8 [C,H,W] with 1 or 3 channels; colours become luma."""
    if picture.shape[0] == channels:
        return picture
    if channels == 3:
        return picture.expand(3, -1, -1)
    return luma(picture).round().byte()


def luma(picture_CHW: Tensor) -> Tensor:
    """Return the luma [1,H,W] of colours."""
    return (picture_CHW * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)


def transform_for(size: int, channels: int, augment: Augment | None, crop_share: float) -> Transform:
    """Return the transform of one side, on tensors where they suffice; ``augment`` is None for evaluation."""
    if augment is None:
        light = crop_share == 1
    else:
        light = not (augment.auto or augment.colour or augment.erase or augment.crop == "resized")
    return Light(size, channels, augment) if light else Timm(size, channels, augment, crop_share)
