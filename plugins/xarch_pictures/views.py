"""Samples of pictures as teacher and student see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xarch import Batch, DataRequest, IndexedData, IndexedStream, UsageError
from xarch_pictures.decoding import decode
from xarch_pictures.options import PictureOptions
from xarch_pictures.selecting import Selection
from xarch_pictures.table import Pictures, Table
from xarch_pictures.transforms import PHOTO_CROP, Transform, as_channels, resized, transform_for

IN_MEMORY = 1 << 30
"""Bytes of decoded or enlarged pictures that are kept."""


@dataclass(frozen=True)
class Form:
    """Form of the pictures of a run.

    Attributes:
        size, channels: of the student.
        teacher_size: of the teacher.
    """

    size: int
    channels: int
    teacher_size: int

    def views(self, options: PictureOptions) -> bool:
        """Return whether the teacher gets pictures of its own."""
        return options.teacher_view != "same" or self.teacher_size != self.size


class Decoded:
    """Small image files of one size, decoded when they are first read and kept."""

    def __init__(self, files: Pictures, count: int, channels: int, size: tuple[int, int]) -> None:
        self.files, self.channels, self.size = files, channels, size
        self.kept = torch.zeros(count, channels, *size, dtype=torch.uint8)
        self.known = np.zeros(count, bool)

    def __getitem__(self, index: int) -> Tensor | bytes:
        if not self.known[index]:
            stored = self.files[index]
            if isinstance(stored, Tensor):
                return stored
            picture = decode(stored, self.channels)
            if (picture.height, picture.width) != self.size:
                return stored
            array = np.array(picture).reshape(*self.size, self.channels)
            self.kept[index] = torch.from_numpy(array).permute(2, 0, 1)
            self.known[index] = True
        return self.kept[index]


@lru_cache(maxsize=2)
def _loaded(table: Table, size: int, channels: int) -> Pictures:
    """Return the pictures of a table, once for all streams; arrays at ``size``, if that fits in memory."""
    found = table.load()
    if isinstance(found, Tensor):
        return resized(found, size, IN_MEMORY)
    if table.size == (size, size) and len(table) * channels * size * size <= IN_MEMORY:
        return Decoded(found, len(table), channels, table.size)
    return cast(Pictures, found)


class Samples(IndexedData):
    """Pictures of a split.

    Samples hold ``images`` [C,H,W], uint8 or float32 in 0..1, ``images@teacher`` and ``images@ema`` where teacher or
    moving average see other draws, ``index``, ``labels`` and, with ``labelled``, a mask of known labels. With
    ``repeats`` R, pictures are [R,C,H,W].
    """

    def __init__(self, table: Table, chosen: Selection, options: PictureOptions, form: Form, training: bool) -> None:
        self.pictures = _loaded(table, form.size, form.channels)
        self.form, self.total = form, len(table)
        augment = options.augment
        small = table.arrays or table.size == (form.size, form.size)
        if augment.crop == "auto":
            augment = augment.model_copy(update={"crop": "pad" if small else "resized"})
        share = options.crop_share or (PHOTO_CROP if augment.crop == "resized" else 1.0)
        self.repeats = augment.repeats if training else 1
        labels = chosen.labels if training else table.labels
        self.labels = None if labels is None else torch.from_numpy(labels)
        train = torch.from_numpy(chosen.indices["train"])
        self.index = torch.arange(self.total) % len(train)
        self.index[train] = torch.arange(len(train))
        self.labelled = None if chosen.labelled is None else torch.from_numpy(chosen.labelled).float()

        def transform(size: int, plain: bool) -> Transform:
            return transform_for(size, form.channels, augment if training and not plain else None, share)

        self.student = transform(form.size, plain=False)
        self.teacher: Transform | None = None
        if options.teacher_view != "same" or (not training and form.teacher_size != form.size):
            self.teacher = transform(form.teacher_size, plain=options.teacher_view == "plain")
        self.average: Transform | None = None
        if options.ema_view != "same":
            self.average = transform(form.size, plain=options.ema_view == "plain")
        self.training = training
        self.augments = any(side.random for side in (self.student, self.teacher, self.average) if side is not None)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        stored = self.pictures[index]
        channels = self.form.channels
        picture = decode(stored, channels) if isinstance(stored, bytes) else as_channels(stored, channels)
        given = {"images": self.student, "images@teacher": self.teacher, "images@ema": self.average}
        sides = {key: side for key, side in given.items() if side is not None}
        drawn = [{key: side(picture, generator) for key, side in sides.items()} for _ in range(self.repeats)]
        sample = drawn[0] if self.repeats == 1 else {key: torch.stack([d[key] for d in drawn]) for key in sides}
        sample["index"] = self.index[index]
        if self.labels is None:
            return sample
        label = self.labels[index]
        if self.labelled is not None:
            known = self.labelled[index] if self.training else torch.ones(())
            sample["labelled"] = known
            label = label * known.long()
        sample["labels"] = label
        return sample


class PictureStream(IndexedStream):
    """Batches of pictures as float32 in 0..1; repeated draws of a picture become samples of their own."""

    def __init__(self, data: Samples, request: DataRequest, indices: np.ndarray, most_skipped: float) -> None:
        if request.samples % data.repeats:
            raise UsageError(
                f"a batch of {request.samples} pictures cannot hold {data.repeats} draws of each",
                "choose a batch size that is a multiple of data.options.augment.repeats",
            )
        self.form, self.repeats = data.form, data.repeats
        groups = replace(request, samples=request.samples // data.repeats)
        super().__init__(data, groups, indices=indices, units=data.repeats, most_skipped=most_skipped)

    def __next__(self) -> Batch:
        found = super().__next__().tensors
        number = found.pop("sample_id")
        if self.repeats > 1:
            found = {
                k: v.flatten(0, 1) if k.startswith("images") else v.repeat_interleave(self.repeats)
                for k, v in found.items()
            }
            number = (number[:, None] ^ torch.arange(self.repeats)).flatten()
        for key in [k for k, v in found.items() if v.dtype == torch.uint8]:
            found[key] = found[key].float().div_(255)
        if self.form.teacher_size != self.form.size and "images@teacher" not in found:
            seen = F.interpolate(found["images"], size=(self.form.teacher_size,) * 2, mode="bicubic", antialias=True)
            found["images@teacher"] = seen.clamp_(0, 1)
        return Batch(found | {"sample_id": number}, len(number))
