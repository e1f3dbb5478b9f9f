"""Takes one file out of a zip archive that may be hostile."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from xarch.errors import UsageError
from xarch.files.limits import too_dense, zip_members

MAX_MEMBER_BYTES = 64 << 30

_BLOCK = 1 << 20


def extract_member(archive: Path, member: str, target: Path, *, max_bytes: int = MAX_MEMBER_BYTES) -> None:
    """Write the file called ``member`` to ``target``, and nothing else of the archive.

    Refused: names that are absolute or climb out (``..``), links and other special files, a name that occurs twice,
    a size beyond ``max_bytes`` or out of proportion to the archive, and content that disagrees with its size or CRC.

    Raises:
        UsageError: refused, missing, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            info = _find(opened, archive, member)
            _check(info, archive, max_bytes)
            _copy(opened, info, archive, target)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as e:
        target.unlink(missing_ok=True)
        raise UsageError(f"{archive.name} is damaged or encrypted: {e}") from e
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _find(opened: zipfile.ZipFile, archive: Path, member: str) -> zipfile.ZipInfo:
    members = zip_members(opened, archive.name)
    found = [m for m in members if m.filename == member]
    if len(found) != 1:
        times = "no" if not found else str(len(found))
        raise UsageError(f"{archive.name} holds {times} file(s) called {member!r}, wanted exactly one")
    return found[0]


def _check(info: zipfile.ZipInfo, archive: Path, max_bytes: int) -> None:
    name = info.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise UsageError(f"{archive.name}: the name {name!r} leaves the archive's folder")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or kind not in (0, stat.S_IFREG):
        raise UsageError(f"{archive.name}: {name!r} is a link or a special file, wanted a plain one")
    if info.file_size > max_bytes:
        raise UsageError(f"{archive.name}: {name!r} has {info.file_size} bytes, at most {max_bytes} are unpacked")
    if too_dense(info.compress_size, info.file_size):
        raise UsageError(f"{archive.name}: {name!r} unpacks from {info.compress_size} to {info.file_size} bytes")


def _copy(opened: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path, target: Path) -> None:
    written = 0
    try:
        with opened.open(info) as source, open(target, "xb") as out:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > info.file_size:
                    raise UsageError(f"{archive.name}: {info.filename!r} is longer than the archive says")
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
    except OSError as e:
        raise UsageError(f"cannot write {target}: {e.strerror}", "free space or choose another XARCH_HOME") from e
    if written != info.file_size:
        raise UsageError(f"{archive.name}: {info.filename!r} ends after {written} of {info.file_size} bytes")
