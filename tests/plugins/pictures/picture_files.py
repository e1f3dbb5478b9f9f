"""Writes small data sets of pictures in every format."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES, EACH = 3, 20


def pixels(count: int, channels: int = 3, side: int = 8, seed: int = 0) -> np.ndarray:
    """Random pictures [N,H,W,C]; no two are alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def write_folder(root: Path, each: int = EACH, parts: tuple[str, ...] = ("",), side: int = 8) -> Path:
    """PNG files in class folders."""
    for p, part in enumerate(parts):
        for k in range(CLASSES):
            (root / part / f"class{k}").mkdir(parents=True)
            for i, picture in enumerate(pixels(each, side=side, seed=10 * k + p)):
                Image.fromarray(picture).save(root / part / f"class{k}" / f"{i:03}.png")
    return root


def write_idx(folder: Path, name: str, count: int, seed: int, packed: bool = True) -> None:
    """A pair of IDX files."""
    x, y = pixels(count, 1, seed=seed)[..., 0], np.arange(count, dtype=np.uint8) % CLASSES
    for kind, array in (("images", x), ("labels", y)):
        head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        data = head + array.tobytes()
        file = folder / f"{name}-{kind}-idx{array.ndim}-ubyte{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(data) if packed else data)


def write_cifar(folder: Path) -> Path:
    """CIFAR-10 as torchvision stores it."""
    root = folder / "cifar-10-batches-py"
    root.mkdir()
    for b, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        x = pixels(10, side=32, seed=b).transpose(0, 3, 1, 2).reshape(10, -1)
        held = {b"data": x, b"labels": [i % 10 for i in range(10)], b"batch_label": b"one"}
        (root / name).write_bytes(pickle.dumps(held, protocol=2))
    names = {b"label_names": [f"kind{k}".encode() for k in range(10)]}
    (root / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return folder


def write_parquet(folder: Path, name: str = "train-00000-of-00001.parquet", count: int = 60, **more: Any) -> Path:
    """A file as model hubs store it, in three row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = []
    for picture in pixels(count, seed=len(name)):
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "png")
        cells.append({"bytes": out.getvalue(), "path": None})
    names = [f"kind{k}" for k in range(CLASSES)]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    labels = [i % CLASSES for i in range(count)]
    table = pa.table({"image": cells, "label": labels, **{k: labels for k in more}})
    told = {"info": {"features": features | {k: features["label"] for k in more}}}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), folder / name, row_group_size=20)
    return folder
