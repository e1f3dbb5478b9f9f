"""Atomic files and folders: complete or absent, even after a power failure."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xarch.failures import system_error
from xarch.printable import escaped


def fsync_path(path: Path) -> None:
    """Force a file or a folder entry to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to errors of writing and closing, which know only a descriptor."""
    try:
        yield
    except OSError as e:
        if e.filename is None and e.errno is not None:
            e.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` atomically."""
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with naming(path):
            with open(partial, "w", encoding="utf-8") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, path)
    finally:
        _discard(partial)
    fsync_path(path.parent)


def _discard(partial: Path) -> None:
    """Remove a partial file. Where that fails too, the error that left it is the one to report."""
    with contextlib.suppress(OSError):
        partial.unlink()


def append_text(path: Path, text: str) -> None:
    """Append ``text`` to a file."""
    with naming(path), open(path, "a", encoding="utf-8") as f:
        f.write(text)


def save_tensors(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors.

    Args:
        tensors: name -> contiguous tensor on the CPU, no two in the same memory.

    Raises:
        OSError: the file cannot be written; safetensors itself raises an error of its own kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as e:
        error = system_error(e, path)
        if error is None:
            raise
        raise error from e


def write_json(path: Path, data: Any) -> None:
    """Replace ``path`` by ``data`` as JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """The text that :func:`write_json` writes."""
    return escaped(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def finite(data: Any) -> Any:
    """The same plain data with every NaN and infinity as None: JSON has neither."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {k: finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [finite(v) for v in data]
    return data


@contextlib.contextmanager
def new_folder(final: Path, *, parents: bool = True) -> Iterator[Path]:
    """A folder that appears under its final name only when the block ends well; an older one is replaced.

    Args:
        parents: make missing folders above it. In a run folder they are not made: one that was removed meanwhile must
            not come back in parts.
    """
    if parents:
        final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with naming(final):
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    fsync_path(file)
            fsync_path(partial)
            old = final.with_name(f".{final.name}.old-{os.getpid()}")
            if final.exists():
                os.replace(final, old)
            os.replace(partial, final)
            fsync_path(final.parent)
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


LEFTOVERS = re.compile(r"\..+\.tmp-\w+$|\.tmp[A-Za-z0-9]{6}$")
"""Names of interrupted writes: of this module, and of safetensors, which writes beside its target."""


def is_leftover(path: Path) -> bool:
    """Whether a name is that of an interrupted write."""
    return LEFTOVERS.match(path.name) is not None


def sweep(folder: Path) -> list[str]:
    """Remove what interrupted writes left behind in ``folder``; returns the names removed.

    A folder whose replacement was cut between the two renames is put back. Only the holder of the folder's lock may
    do this: what a living process is writing looks the same.
    """
    removed = []
    for item in sorted(folder.glob(".*.old-*")):
        final = folder / item.name[1:].rsplit(".old-", 1)[0]
        if not final.exists():
            os.replace(item, final)
        else:
            shutil.rmtree(item, ignore_errors=True)
        removed.append(item.name)
    for item in sorted(folder.iterdir()):
        if not is_leftover(item):
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
        removed.append(item.name)
    return removed


def sweep_tree(folder: Path) -> list[str]:
    """:func:`sweep` a folder and all folders below it; links are not followed."""
    removed = sweep(folder)
    for item in sorted(folder.iterdir()):
        if item.is_dir() and not item.is_symlink():
            removed += sweep_tree(item)
    return removed
