"""Blender, instant-ngp and nerfstudio folders: ``transforms_{train,val,test}.json`` or one ``transforms.json``.

Source: NeRF (arXiv 2003.08934) for the first form. A frame's ``transform_matrix`` is camera-to-world with OpenGL axes.
Intrinsics are ``camera_angle_x`` (radians) or ``fl_x``/``fl_y``, ``cx``/``cy``, ``w``/``h`` and ``k1, k2, p1, p2``
(pixels of the stored image), which a frame may override. Missing sizes are read from the header of an image. ``aabb``
[[x0,y0,z0],[x1,y1,z1]], if present, is the scene's box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xarch import UsageError, read_json
from xarch_pvd.data.datasets.pictures import find_picture, named_path, picture_size
from xarch_pvd.data.datasets.posed import PosedImages
from xarch_pvd.data.datasets.sizes import view_size
from xarch_pvd.data.datasets.splits import SPLITS, check_split, held_out, listed
from xarch_pvd.data.datasets.transforms_keys import check_keys

MAX_BYTES = 256 << 20
LARGEST = 1e12
LENS = ("k1", "k2", "p1", "p2")
PINHOLES = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL")


def transforms_file(folder: Path, split: str) -> Path | None:
    """Return the JSON file of a split, or None."""
    if folder.suffix == ".json" and folder.is_file():
        return folder
    if any((folder / f"transforms_{s}.json").is_file() for s in SPLITS):
        # Split files take precedence for all splits: they may train on views that transforms.json would hold out.
        order = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}[split]
        return next((f for s in order if (f := folder / f"transforms_{s}.json").is_file()), None)
    return folder / "transforms.json" if (folder / "transforms.json").is_file() else None


def read_blender(path: Path, split: str = "train", downscale: int = 1) -> PosedImages:
    """Read the views of a split.

    Raises:
        UsageError: the file is missing or damaged, or a camera model or matrix is not supported.
    """
    check_split(split)
    file = transforms_file(path, split)
    if file is None:
        there = ", ".join(sorted(f.name for f in path.glob("transforms*.json"))) or "neither of both"
        raise UsageError(
            f"{path} has no transforms_{split}.json and no transforms.json for all splits", f"it has {there}"
        )
    document = _json(file)
    frames = document.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(f, Mapping) for f in frames):
        raise UsageError(f"{file} lists no frames")
    frames = _of_split(frames, document, file, split)
    kinds = ("file", "name", "c2w", "w", "h", "fx", "fy", "cx", "cy", "lens", "mask")
    columns: dict[str, list[Any]] = {k: [] for k in kinds}
    notes = check_keys(document, frames, str(file))
    for number, frame in enumerate(frames):
        where = f"{file}, frame {number}"
        picture = _picture(file.parent, frame, where)
        said = {**document, **frame}
        width, height = _size(said, picture, where)
        fx, fy = _focal(said, width, height, where)
        size = view_size(picture, width, height, downscale)
        columns["file"].append(picture)
        columns["name"].append(picture.stem)
        columns["c2w"].append(_matrix(frame.get("transform_matrix"), where))
        columns["w"].append(size.width)
        columns["h"].append(size.height)
        columns["fx"].append(fx * size.across)
        columns["fy"].append(fy * size.down)
        columns["cx"].append(_number(said, "cx", width / 2, where) * size.across)
        columns["cy"].append(_number(said, "cy", height / 2, where) * size.down)
        columns["lens"].append(_lens(said, where))
        columns["mask"].append(_mask(file.parent, frame, where))
    return PosedImages(
        files=tuple(columns["file"]),
        names=tuple(columns["name"]),
        c2w=torch.tensor(columns["c2w"], dtype=torch.float64),
        widths=tuple(columns["w"]),
        heights=tuple(columns["h"]),
        fx=torch.tensor(columns["fx"], dtype=torch.float64),
        fy=torch.tensor(columns["fy"], dtype=torch.float64),
        cx=torch.tensor(columns["cx"], dtype=torch.float64),
        cy=torch.tensor(columns["cy"], dtype=torch.float64),
        distortion=torch.tensor(columns["lens"], dtype=torch.float64),
        split=split,
        kind="blender",
        background=(1.0, 1.0, 1.0),
        box=_box(document.get("aabb"), file),
        masks=tuple(columns["mask"]),
        applied=_applied(document, str(file)),
        notes=notes,
    )


def _json(file: Path) -> dict[str, Any]:
    document = read_json(file, max_bytes=MAX_BYTES)
    if not isinstance(document, dict):
        raise UsageError(f"{file} holds a {type(document).__name__}, expected an object with frames")
    return document


def _of_split(frames: list[Any], document: Mapping[str, Any], file: Path, split: str) -> list[Any]:
    """Select the frames of a split: by the file's lists, otherwise every 8th view (by file name) is held out."""
    if file.name != "transforms.json":
        return frames
    chosen = listed([str(f.get("file_path")) for f in frames], document, split, str(file))
    if chosen is not None:
        return [frames[number] for number in chosen]
    frames = sorted(frames, key=lambda f: str(f.get("file_path")))
    return [frames[v] for v in held_out(len(frames), split)]


def _picture(folder: Path, frame: Mapping[str, Any], where: str) -> Path:
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where} has no file_path")
    return find_picture(named_path(folder, name))


def _mask(folder: Path, frame: Mapping[str, Any], where: str) -> Path | None:
    name = frame.get("mask_path")
    if name is None:
        return None
    if not isinstance(name, str) or not named_path(folder, name).is_file():
        raise UsageError(
            f"{where}: its mask {name!r} does not exist", "masks are read from mask_path; black pixels are excluded"
        )
    return folder / name


def _applied(document: Mapping[str, Any], where: str) -> tuple[float, ...]:
    """Return the rotation and scale applied to the capture's world before this file was written, 13 numbers."""
    rows, scale = document.get("applied_transform"), _number(document, "applied_scale", 1.0, where)
    if rows is None and scale == 1.0:
        return ()
    matrix = _matrix(rows, f"{where}, applied_transform") if rows is not None else torch.eye(4).tolist()
    if scale <= 0:
        raise UsageError(f"{where}: applied_scale is {scale}, expected a positive number")
    return (*(number for row in matrix[:3] for number in row), scale)


def _size(said: Mapping[str, Any], picture: Path, where: str) -> tuple[int, int]:
    if "w" in said and "h" in said:
        return int(_number(said, "w", 0, where)), int(_number(said, "h", 0, where))
    return picture_size(picture)


def _focal(said: Mapping[str, Any], width: int, height: int, where: str) -> tuple[float, float]:
    def of(length: str, angle: str, size: int) -> float | None:
        if length in said:
            return _number(said, length, 0, where)
        if angle in said:
            half = 0.5 * _number(said, angle, 0, where)
            if not 0 < half < math.pi / 2:
                raise UsageError(f"{where}: {angle} is {2 * half}, expected radians between 0 and pi")
            return 0.5 * size / math.tan(half)
        return None

    fx, fy = of("fl_x", "camera_angle_x", width), of("fl_y", "camera_angle_y", height)
    if fx is None and fy is None:
        raise UsageError(f"{where} has no focal length (camera_angle_x or fl_x)")
    # Square pixels unless both are given; a rounded camera_angle_y would only add error.
    if fx is not None and "fl_y" not in said:
        fy = fx
    return (fy if fx is None else fx), (fx if fy is None else fy)  # type: ignore[return-value]


def _lens(said: Mapping[str, Any], where: str) -> list[float]:
    model = str(said.get("camera_model", "OPENCV")).upper()
    unknown = [k for k in ("k3", "k4", "k5", "k6") if _number(said, k, 0.0, where)]
    if model not in PINHOLES or said.get("is_fisheye") or unknown:
        seen = f"terms {', '.join(unknown)}" if unknown else f"camera model {said.get('camera_model', 'fisheye')}"
        raise UsageError(
            f"{where} has {seen}; only k1, k2, p1, p2 of a pinhole are supported", "undistort the images first"
        )
    return [_number(said, k, 0.0, where) for k in LENS]


def _matrix(rows: Any, where: str) -> list[list[float]]:
    try:
        matrix = [[float(v) for v in row] for row in rows]
    except (TypeError, ValueError, OverflowError):
        matrix = []
    if len(matrix) not in (3, 4) or any(len(row) != 4 for row in matrix):
        raise UsageError(f"{where}: transform_matrix is not a 4x4 matrix")
    return [*matrix[:3], [0.0, 0.0, 0.0, 1.0]]


def _box(value: Any, file: Path) -> tuple[float, float, float, float, float, float] | None:
    if value is None:
        return None
    try:
        (x0, y0, z0), (x1, y1, z1) = ([float(v) for v in corner] for corner in value)
    except (TypeError, ValueError, OverflowError) as e:
        raise UsageError(f"{file}: aabb is {str(value)[:80]}, expected two corners of three numbers") from e
    return (x0, y0, z0, x1, y1, z1)


def _number(said: Mapping[str, Any], name: str, usual: float, where: str) -> float:
    value = said.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise UsageError(f"{where}: {name} is {str(value)[:40]}, expected a number")
    return float(value)
