"""Reading and writing weights: safetensors first; a pickle only when asked for, and never as code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xarch.errors import UsageError
from xarch.files.atomic import fsync_path, save_tensors
from xarch.files.digest import file_digest
from xarch.files.header import looks_like_safetensors, weights_header
from xarch.files.home import cache_dir
from xarch.files.limits import check_stored_archive
from xarch.files.regular import open_regular

if TYPE_CHECKING:
    from torch import Tensor


def load_weights(path: Path | str, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Tensors of a file by name, on the CPU.

    The kind of file is told from its content. A pickle (.bin, .pt, .pth, .ckpt) is refused unless ``allow_pickle``;
    then another process reads it with ``torch.load(weights_only=True)``, which builds tensors and nothing else, and
    writes it as safetensors into the user's cache, from where it is read now and the next time.

    Raises:
        UsageError: no such file, damaged, a pickle that is not allowed, or one that holds more than tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise UsageError(f"{path} is empty", "download or write it again")
    if _is_pickle(path) and not looks_like_safetensors(path):
        path = _converted(path, allow_pickle)
    weights_header(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise UsageError(f"{path} cannot be read: {e}", "download or write it again") from e


def save_weights(tensors: Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors; the file appears whole, after its bytes have reached the disk.

    Every name is stored on its own: tensors that share memory (a tied head) are stored once per name.

    Raises:
        UsageError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    stored: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        owner = plain.untyped_storage().data_ptr()
        shared = owner in owners or plain.untyped_storage().nbytes() != plain.numel() * plain.element_size()
        owners.add(owner)
        stored[name] = plain.clone() if shared else plain
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        usual = partial.stat().st_mode
        save_tensors(stored, partial, {"format": "pt", **(metadata or {})})
        # safetensors makes files that only their owner reads; a student is handed on like any other file.
        partial.chmod(usual)
        fsync_path(partial)
        os.replace(partial, path)
        fsync_path(path.parent)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror or e}", "free space or choose another folder") from e
    finally:
        partial.unlink(missing_ok=True)


def _is_pickle(path: Path) -> bool:
    """The two forms torch writes: a zip archive with a pickle inside, and a bare pickle stream."""
    with open_regular(path) as f:
        head = f.read(4)
    return head[:2] == b"PK" or head[:1] == b"\x80"


def _converted(path: Path, allow_pickle: bool) -> Path:
    """The safetensors copy of a pickle, made by another process on first use."""
    if not allow_pickle:
        raise UsageError(
            f"{path} is a pickle, and reading a pickle can run code; xarch reads safetensors only",
            "use a checkpoint in safetensors, or add `--allow-pickle` (option allow_pickle) if you trust its author: "
            "it is then read by torch.load(weights_only=True) and kept as safetensors",
        )
    copy = cache_dir() / "unpickled" / f"{file_digest(path)}.safetensors"
    if not copy.is_file():
        check_stored_archive(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "xarch.files.unpickle", str(path.resolve()), str(copy.resolve())]
        # Python imports from the folder it is started in, which may be that of the checkpoint: start it elsewhere.
        done = subprocess.run(command, env=_environment(), cwd=copy.parent, capture_output=True, text=True)
        if done.returncode != 0 or not copy.is_file():
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise UsageError(
                f"{path} was refused: {reason[0]}",
                "no unsafe way of reading it is tried; convert it to safetensors where you trust it",
            )
    return copy


def _environment() -> dict[str, str]:
    """An environment in which another process finds the same xarch."""
    root = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root if not known else os.pathsep.join((root, known))}
