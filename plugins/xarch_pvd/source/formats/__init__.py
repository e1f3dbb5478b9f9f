"""File formats of radiance fields, converted to and from one format-independent record.

Importing a reader imports torch; registering the plugin does not import this package.
"""

from __future__ import annotations

from xarch_pvd.source.formats.pvd_pth import read_pvd_pth, write_pvd_pth
from xarch_pvd.source.formats.recognise import read_field, recognise
from xarch_pvd.source.formats.record import FieldFile
from xarch_pvd.source.formats.svox2_npz import read_svox2_npz, svox2_to_tensors, tensors_to_svox2, write_svox2_npz
from xarch_pvd.source.formats.voxels_npz import read_voxels_npz, write_voxels_npz

__all__ = [
    "FieldFile",
    "read_field",
    "read_pvd_pth",
    "read_svox2_npz",
    "read_voxels_npz",
    "recognise",
    "svox2_to_tensors",
    "tensors_to_svox2",
    "write_pvd_pth",
    "write_svox2_npz",
    "write_voxels_npz",
]
