"""Reader of COLMAP models: ``cameras``, ``images`` and ``points3D``, binary (little endian) or text."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xarch import UsageError, open_regular, regular_text

MODELS = {
    0: ("SIMPLE_PINHOLE", 3), 1: ("PINHOLE", 4), 2: ("SIMPLE_RADIAL", 4), 3: ("RADIAL", 5), 4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8), 6: ("FULL_OPENCV", 12), 7: ("FOV", 5), 8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5), 10: ("THIN_PRISM_FISHEYE", 12),
}  # fmt: skip
MAX_BYTES = 8 << 30
MAX_NAME = 4096


@dataclass(frozen=True, slots=True)
class ColmapCamera:
    model: str
    width: int
    height: int
    parameters: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ColmapImage:
    """World-to-camera rotation as a quaternion (w, x, y, z) and translation, OpenCV axes."""

    name: str
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]
    camera: int


class Reader:
    """Cursor over bytes that raises at their end."""

    def __init__(self, file: Path) -> None:
        if file.stat().st_size > MAX_BYTES:
            raise UsageError(f"{file} has more than {MAX_BYTES} bytes")
        with open_regular(file) as stream:
            self.file, self.data, self.at = file, stream.read(), 0

    def take(self, form: str) -> tuple:
        size = struct.calcsize(form)
        self.skip(size)
        return struct.unpack_from(form, self.data, self.at - size)

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise UsageError(f"{self.file} ends at byte {len(self.data)} in the middle of an entry: it is truncated")
        self.at += size

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + MAX_NAME)
        if end < 0:
            raise UsageError(f"{self.file} has an unterminated name at byte {self.at}")
        text = self.data[self.at : end].decode("utf-8", "replace")
        self.at = end + 1
        return text


def model_folder(path: Path) -> Path | None:
    """Return the subfolder with the COLMAP model, or None."""
    for folder in (path / "sparse" / "0", path / "sparse", path / "colmap" / "sparse" / "0", path):
        if any((folder / f"images.{e}").is_file() and (folder / f"cameras.{e}").is_file() for e in ("bin", "txt")):
            return folder
    return None


def read_cameras(folder: Path) -> dict[int, ColmapCamera]:
    """Read cameras by number. Raises UsageError for damaged files and unknown models."""
    cameras: dict[int, ColmapCamera] = {}
    if (folder / "cameras.bin").is_file():
        reader = Reader(folder / "cameras.bin")
        for _ in range(reader.take("<Q")[0]):
            number, model, width, height = reader.take("<IiQQ")
            if model not in MODELS:
                raise UsageError(f"{reader.file} has camera model {model}, expected 0 to {max(MODELS)}")
            name, count = MODELS[model]
            cameras[number] = ColmapCamera(name, width, height, reader.take(f"<{count}d"))
        return cameras
    for line in _lines(folder / "cameras.txt"):
        try:
            number, name, width, height, *parameters = line.split()
            cameras[int(number)] = ColmapCamera(name, int(width), int(height), tuple(map(float, parameters)))
        except ValueError as e:
            raise UsageError(f"{folder / 'cameras.txt'}: cannot read the line {line[:80]!r}") from e
    return cameras


def read_images(folder: Path) -> list[ColmapImage]:
    """Read registered images, sorted by name. Raises UsageError for damaged files."""
    images: list[ColmapImage] = []
    if (folder / "images.bin").is_file():
        reader = Reader(folder / "images.bin")
        for _ in range(reader.take("<Q")[0]):
            values = reader.take("<I7dI")
            images.append(ColmapImage(reader.name(), values[1:5], values[5:8], values[8]))
            reader.skip(24 * reader.take("<Q")[0])
    else:
        # Two lines per image; the second (its points) may be empty.
        lines = list(_lines(folder / "images.txt", empty=True))
        for line in lines[::2]:
            words = line.split(maxsplit=9)
            try:
                numbers = [float(v) for v in words[1:8]]
                images.append(ColmapImage(words[9], tuple(numbers[:4]), tuple(numbers[4:]), int(words[8])))
            except (ValueError, IndexError) as e:
                raise UsageError(f"{folder / 'images.txt'}: cannot read the line {line[:80]!r}") from e
    return sorted(images, key=lambda i: i.name)


def read_points(folder: Path) -> np.ndarray | None:
    """Read points, float64 [n,3], or None without a file. Raises UsageError for damaged files."""
    if (folder / "points3D.bin").is_file():
        reader = Reader(folder / "points3D.bin")
        points = []
        for _ in range(reader.take("<Q")[0]):
            points.append(reader.take("<Q3d3BdQ"))
            reader.skip(8 * points[-1][-1])
        return np.array([p[1:4] for p in points], dtype=np.float64).reshape(-1, 3)
    if (folder / "points3D.txt").is_file():
        try:
            rows = [[float(v) for v in line.split(maxsplit=4)[1:4]] for line in _lines(folder / "points3D.txt")]
            return np.array(rows, dtype=np.float64).reshape(-1, 3)
        except ValueError as e:
            raise UsageError(f"{folder / 'points3D.txt'} cannot be read: {e}") from e
    return None


def _lines(file: Path, *, empty: bool = False) -> Iterator[str]:
    if file.stat().st_size > MAX_BYTES:
        raise UsageError(f"{file} has more than {MAX_BYTES} bytes")
    try:
        text = regular_text(file)
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{file} cannot be read: {e}") from e
    for line in text.splitlines():
        if not line.startswith("#") and (line.strip() or empty):
            yield line
