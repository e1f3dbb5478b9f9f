"""Image files in folders: classes are sub-folders, below ``train``, ``val`` and ``test`` or without such parts."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from xarch import UsageError, open_regular, refuse_link_out
from xarch_pictures.decoding import MAX_FILE, SUFFIXES, size_of
from xarch_pictures.table import MAX_PICTURES, TRAIN, Table, part_of

LOOKED_AT = 16
"""Pictures whose headers decide whether all have one size."""
LARGEST_STORED = 64
"""Image files of at most this size are taken as they are; larger ones are photographs to be cropped."""


class Files:
    """Image files by index, as bytes."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> bytes:
        with open_regular(self.paths[index]) as file:
            return file.read(MAX_FILE + 1)


def read_folder(root: Path, labels: bool) -> Table | None:
    """Find the pictures below a folder; None if there are none.

    Raises:
        UsageError: a link leads out of it, or parts have different classes.
    """
    parts = {p: t for p in sorted(root.iterdir()) if p.is_dir() and (t := part_of(p.name)) is not None}
    trains = TRAIN in parts.values()
    left: Counter[str] = Counter()
    found: list[tuple[Path, str, int]] = []  # path, class ("" without), part
    for top, part in parts.items() if trains else [(root, TRAIN)]:
        found += [(path, _class(path, top), part) for path in _walk(root, top, left)]
    if not found:
        return None
    names = tuple(sorted({name for _, name, part in found if name and part == TRAIN})) if labels else ()
    if names:
        left["pictures outside class folders"] += sum(not name for _, name, _ in found)
        found = [entry for entry in found if entry[1]]
        other = sorted({name for _, name, _ in found} - set(names))
        if other:
            raise UsageError(f"{root}: class {other[0]!r} has no training pictures", "remove it, or add some")
        for top in (top for top, part in parts.items() if part == TRAIN) if trains else (root,):
            left["class folders without pictures, whose names are no classes,"] += len(_class_folders(top) - set(names))
    number = {name: k for k, name in enumerate(names)}
    files = Files([path for path, _, _ in found])
    left += Counter()
    return Table(
        title=f"{root.name or root}/, {len(found)} pictures" + (f" of {len(names)} classes" if names else ""),
        files=[(path.relative_to(root).as_posix(), path) for path, _, _ in found],
        parts=np.array([part for _, _, part in found], dtype=np.int8),
        labels=np.array([number[name] for _, name, _ in found], dtype=np.int64) if names else None,
        names=names,
        channels=3,
        size=common_size(files, len(found)),
        load=lambda: files,
        warnings=tuple(f"{root}: {count} {what} are not read" for what, count in sorted(left.items())),
    )


def common_size(files: Files, count: int) -> tuple[int, int] | None:
    """Return (height, width) if some pictures, spread evenly, are small and of one size."""
    sizes = {size_of(files[i]) for i in np.linspace(0, count - 1, min(count, LOOKED_AT), dtype=int)} - {None}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if size is not None and max(size) <= LARGEST_STORED else None


def _class(path: Path, top: Path) -> str:
    inside = path.relative_to(top).parts
    return inside[0] if len(inside) > 1 else ""


def _class_folders(top: Path) -> set[str]:
    return {p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith(".")}


def _walk(root: Path, top: Path, left: Counter[str]) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(top):
        left["links to folders"] += sum(Path(folder, f).is_symlink() for f in folders)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(folder, name)
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                left["other files"] += 1
                continue
            if path.is_symlink():
                refuse_link_out(root, path)
            found.append(path)
        if len(found) > MAX_PICTURES:
            raise UsageError(f"{root} has more than {MAX_PICTURES} pictures")
    return found
