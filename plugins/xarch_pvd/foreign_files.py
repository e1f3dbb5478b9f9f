"""Which reader takes a file that is not xarch's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xarch import UsageError
from xarch_pvd.formats.nerfstudio import read_nerfstudio
from xarch_pvd.formats.pvd_pth import read_pvd_pth
from xarch_pvd.formats.record import FieldFile
from xarch_pvd.formats.tensorf_th import read_tensorf_th

READERS: dict[str, Callable[..., FieldFile]] = {
    ".pth": read_pvd_pth,
    ".th": read_tensorf_th,
    ".ckpt": read_nerfstudio,
}


def read_foreign(path: Path, *, allow_pickle: bool) -> FieldFile:
    """The record of a torch-ngp or PVD, TensoRF or nerfstudio checkpoint.

    Raises:
        UsageError: the suffix is none of theirs, or the file is not what its suffix says.
    """
    reader = READERS.get(path.suffix)
    if reader is None:
        raise UsageError(
            f"{path.name} is no field file: its suffix is {path.suffix or 'empty'}",
            f"known: .safetensors (xarch), {', '.join(READERS)}",
        )
    return reader(path, allow_pickle=allow_pickle)
