"""Recognition of field file formats."""

from __future__ import annotations

from pathlib import Path

from xarch import UsageError, open_regular
from xarch_pvd.source.formats import nerfstudio, npz_file, pvd_pth, tensorf_th
from xarch_pvd.source.formats.pickle_file import read_pickle
from xarch_pvd.source.formats.record import FieldFile
from xarch_pvd.source.formats.svox2_npz import read_svox2_npz
from xarch_pvd.source.formats.voxels_npz import read_voxels_npz

KNOWN = (
    "torch-ngp and PVD .pth, TensoRF .th, nerfstudio step-*.ckpt (torch backend) or its run folder, svox2 .npz, "
    "xarch voxels .npz"
)


def recognise(path: Path | str) -> str:
    """Return "pickle", "svox2" or "voxels" from the content; the origin of a pickle is known only after loading.

    Raises:
        UsageError: the file does not exist or its format is unknown.
    """
    path = nerfstudio.last_checkpoint(Path(path))
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    with open_regular(path) as f:
        head = f.read(4)
    members = npz_file.names(path)
    if "links" in members:
        return "svox2"
    if members & {"sigma", "sigma_raw"}:
        return "voxels"
    if head[:3] == b"ply":
        raise UsageError(
            f"{path} is a point cloud or mesh, which contains no radiance field", f"supported formats: {KNOWN}"
        )
    if not members and (head[:2] == b"PK" or head[:1] == b"\x80"):
        return "pickle"
    seen = f"an archive of {', '.join(sorted(members)[:8])}" if members else f"a file that starts with {head!r}"
    raise UsageError(f"{path} is {seen}, not a known radiance field format", f"supported formats: {KNOWN}")


def read_field(path: Path | str, *, allow_pickle: bool = False) -> FieldFile:
    """Read the field of a file.

    Args:
        allow_pickle: whether pickled checkpoints may be read, with ``torch.load(weights_only=True)``.

    Raises:
        UsageError: the format is unknown, the file is damaged, or it is a pickle and pickles are not allowed.
    """
    path = nerfstudio.last_checkpoint(Path(path))
    kind = recognise(path)
    if kind == "svox2":
        return read_svox2_npz(path)
    if kind == "voxels":
        return read_voxels_npz(path)
    loaded = read_pickle(path, allow_pickle=allow_pickle)
    for fits, read in (
        (nerfstudio.is_nerfstudio, nerfstudio.from_loaded),
        (tensorf_th.is_tensorf, tensorf_th.from_loaded),
        (pvd_pth.is_torch_ngp, pvd_pth.from_loaded),
    ):
        if fits(loaded):
            return read(loaded, path)
    raise UsageError(
        f"{path} is a checkpoint of an unknown program: it holds {', '.join(map(str, list(loaded)[:8]))}",
        f"supported formats: {KNOWN}",
    )
