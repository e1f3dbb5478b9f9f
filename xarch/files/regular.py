"""Files in folders that others made: only regular ones are read, and no link leads out of the folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from xarch.errors import UsageError

FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading. A pipe, which would wait for a writer, and a device, which never ends, are refused.

    Raises:
        UsageError: it is not a regular file.
        OSError: it cannot be opened.
    """
    file = os.open(path, os.O_RDONLY | FLAGS)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UsageError(f"{path} is not a regular file", "replace it by one, or remove it")
    return os.fdopen(file, "rb")


def regular_text(path: Path | str) -> str:
    """Return the text of a UTF-8 file, which :func:`open_regular` opens; check its size before.

    Raises:
        UsageError: it is not a regular file.
        OSError, UnicodeDecodeError: it cannot be read.
    """
    with open_regular(path) as file:
        return file.read().decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def refuse_link_out(folder: Path, file: Path) -> None:
    """Check that ``file``, a path below ``folder``, lies in it once all links are followed.

    Raises:
        UsageError: a link leads out of the folder.
    """
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        raise UsageError(
            f"{file} leads out of {folder} by a link", "replace the link by the file itself; `cp -rL` copies so"
        )


def refuse_links_out(folder: Path) -> None:
    """:func:`refuse_link_out` for everything below a folder; links are not followed.

    Raises:
        UsageError: a link leads out of the folder.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                refuse_link_out(folder, path)
