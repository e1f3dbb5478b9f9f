"""The conformance kit for every format of pictures, and for the batch step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from tests.plugins.pictures.picture_files import pixels, write_cifar, write_folder, write_idx, write_parquet
from xarch import Batch, TensorInfo
from xarch.testing import BatchStepConformance, DataConformance


class Small(DataConformance):
    options: ClassVar[Mapping[str, Any]] = {"heldout": 0.2, "validation": 0.1, "calibration": 0.1}
    samples = 4
    most = 60


class TestFolder(Small):
    def make_ref(self, folder: Path) -> str:
        return f"images:{write_folder(folder / 'p', each=12)}"


class TestLabelFree(Small):
    workers = False
    options: ClassVar[Mapping[str, Any]] = {
        **Small.options,
        "labels": False,
        "augment": {"crop": "resized", "auto": "rand-m9-mstd0.5-inc1"},
    }

    def make_ref(self, folder: Path) -> str:
        return f"images:{write_folder(folder / 'p', each=12)}"


class TestParquet(Small):
    def make_ref(self, folder: Path) -> str:
        return f"images:{write_parquet(folder / 'p')}"


class TestCifar(Small):
    workers = False
    options: ClassVar[Mapping[str, Any]] = {**Small.options, "size": 16, "teacher_size": 8, "augment": {"repeats": 2}}

    def make_ref(self, folder: Path) -> str:
        return f"images:{write_cifar(folder)}"


class TestIdx(Small):
    workers = False
    options: ClassVar[Mapping[str, Any]] = {**Small.options, "teacher_view": "other"}

    def make_ref(self, folder: Path) -> str:
        write_idx(folder, "train", 40, seed=1)
        write_idx(folder, "t10k", 20, seed=2)
        return f"images:{folder}"


class TestNpz(Small):
    workers = False
    options: ClassVar[Mapping[str, Any]] = {**Small.options, "labelled": 12}

    def make_ref(self, folder: Path) -> str:
        np.savez(folder / "a.npz", images=pixels(50), labels=np.arange(50) % 3)
        return f"images:{folder / 'a.npz'}"


class TestCutMix(BatchStepConformance):
    step = "cutmix"
    options: ClassVar[Mapping[str, Any]] = {"mixup": 0.8}
    tensors: ClassVar[Mapping[str, TensorInfo]] = {
        "images": TensorInfo("BCHW", {"C": 1, "H": 6, "W": 6}),
        "labels": TensorInfo("B"),
    }
    data: ClassVar[Mapping[str, Any]] = {"classes": 3}

    def batch(self) -> Batch:
        images = torch.rand(self.samples, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        return Batch({"images": images, "labels": torch.arange(self.samples) % 3}, self.samples)
