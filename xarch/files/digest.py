"""Digests: of files, remembered so that an unchanged file is read once, and of tensors."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from xarch.errors import UsageError
from xarch.files.atomic import write_text
from xarch.files.home import cache_dir
from xarch.files.manifest import entry_of
from xarch.files.regular import open_regular

SETTLED_NS = 2_000_000_000
SAMPLES, SAMPLE_BYTES = 4096, 4096
"""Number and size of the blocks that represent a data set's content."""


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks.

    Raises:
        UsageError: the file cannot be read.
    """
    return str(entry_of(path)["sha256"])


def file_digest(path: Path | str) -> str:
    """sha256 of a file, taken from the user's cache while the file is the same one, by number, size and times.

    The time of change cannot be set by programs that restore times, such as tar and rsync. A file that was changed just
    now is not remembered: another change within the clock's resolution would not be seen.

    Raises:
        UsageError: the file cannot be read.
    """
    real = Path(os.path.realpath(path))
    try:
        status = real.stat()
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    seen = {"path": str(real), "device": status.st_dev, "inode": status.st_ino, "size": status.st_size}
    seen |= {"mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
    note = cache_dir() / "digests" / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    known = _remembered(note)
    if {key: known.get(key) for key in seen} == seen:
        return str(known["sha256"])
    settled = time.time_ns() - status.st_ctime_ns > SETTLED_NS
    value = sha256(real)
    if settled:
        _remember(note, {**seen, "sha256": value})
    return value


def sampled_digest(files: Iterable[tuple[str, Path]]) -> str:
    """sha256 over names, sizes and samples of the content of many files: small ones whole, of others blocks spread over
    them, at most some thousand blocks altogether.

    Args:
        files: (name, path) of each, in order.

    Raises:
        UsageError: a file cannot be read.
    """
    known = list(files)
    share = max(1, SAMPLES // max(len(known), 1))
    every = -(-len(known) // SAMPLES)
    digest = hashlib.sha256()
    for number, (name, path) in enumerate(known):
        try:
            size = path.stat().st_size
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
            if number % max(every, 1) == 0:
                with open_regular(path) as file:
                    for place in _places(size, min(share, 16)):
                        file.seek(place)
                        digest.update(file.read(SAMPLE_BYTES))
        except OSError as e:
            raise UsageError(f"cannot read {path}: {e.strerror}") from e
    return digest.hexdigest()


def _places(size: int, count: int) -> list[int]:
    """Where blocks are read: all of a small file, else evenly from the first to the last."""
    if size <= count * SAMPLE_BYTES:
        return list(range(0, size, SAMPLE_BYTES))
    last = size - SAMPLE_BYTES
    return sorted({last * i // max(count - 1, 1) for i in range(count)})


def _remembered(note: Path) -> dict[str, object]:
    """Return the cached digest; an unreadable entry counts as missing, since the digest can be recomputed."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("sha256"), str) else {}


def _remember(note: Path, known: dict[str, object]) -> None:
    """Cache a digest; if the cache cannot be written, the digest is recomputed later."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(known) + "\n")
    except OSError:
        return


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def tensor_hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """sha256 of every tensor's bytes."""
    hashes = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        hashes[name] = hashlib.sha256(flat.numpy().data).hexdigest()
    return hashes


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One digest over named digests."""
    return hashlib.sha256("".join(f"{k}={hashes[k]}\n" for k in sorted(hashes)).encode()).hexdigest()
