"""Reader of TensoRF checkpoints (arXiv 2203.09517), ``.th``.

A dict of ``kwargs``, ``state_dict`` and, once the alpha mask exists, ``alphaMask.shape``, ``alphaMask.mask`` (packed
bits, highest first, of a volume [1,1,Z,Y,X] sampled at vertices) and ``alphaMask.aabb``. Tensors keep the names of the
state dict: ``density_plane.m`` [1,R,Nb,Na] and ``density_line.m`` [1,R,Nc,1] with (a,b) = (0,1), (0,2), (1,2) and
c = 2, 1, 0, ``app_plane.m``, ``app_line.m``, ``basis_mat.weight``, ``renderModule.mlp.{0,2,4}.{weight,bias}``.

``tensorf-vm`` and ``tensorf-cp`` have the options ``resolution, shading (MLP_Fea|MLP_PE|MLP|SH|RGB), pos_pe, view_pe,
fea_pe, app_dim, density_shift, distance_scale, activation (softplus|relu)``. Density per world unit is
distance_scale * activation(f + density_shift) with softplus, which no log-density tensor can represent: a source
adapter wraps these fields without copying. Encodings are [sin(all), cos(all)] of 2^k x, without pi.

Forward-facing scenes are stored in normalised device coordinates, recognisable by near and far planes of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError
from xarch_pvd.source.formats.occupancy import MERGED_SIDE, any_over, cubic
from xarch_pvd.source.formats.pickle_file import tensors_of
from xarch_pvd.source.formats.record import FieldFile, need, number, numbers

SHADINGS = ("MLP_Fea", "MLP_PE", "MLP", "SH", "RGB")
MAX_MASK = 1 << 30


def is_tensorf(loaded: Mapping[str, Any]) -> bool:
    """Return whether a loaded checkpoint is from TensoRF."""
    state = loaded.get("state_dict")
    return isinstance(loaded.get("kwargs"), Mapping) and isinstance(state, Mapping)


def from_loaded(loaded: Mapping[str, Any], path: Path) -> FieldFile:
    """Convert a loaded checkpoint to a record."""
    if not is_tensorf(loaded):
        raise UsageError(f"{path} is not a TensoRF checkpoint: it holds {', '.join(map(str, list(loaded)[:8]))}")
    where, said = str(path), loaded["kwargs"]
    tensors = tensors_of(loaded["state_dict"], path)
    if "density_line.0" not in tensors:
        raise UsageError(f"{where} has no density_line.0; only TensorVMSplit and TensorCP are supported")
    planes = "density_plane.0" in tensors
    lines = [need(tensors, f"density_line.{2 - axis}", where, (1, None, None, 1)) for axis in range(3)]
    resolution = [line.shape[2] for line in lines]
    columns = 0
    for kind in ("density", "app"):
        for m, (a, b, c) in enumerate(((0, 1, 2), (0, 2, 1), (1, 2, 0))):
            rank = need(tensors, f"{kind}_line.{m}", where, (1, None, resolution[c], 1)).shape[1]
            if planes:
                need(tensors, f"{kind}_plane.{m}", where, (1, rank, resolution[b], resolution[a]))
            if kind == "app":
                columns = columns + rank if planes else rank
    features = need(tensors, "basis_mat.weight", where, (None, columns)).shape[0]
    shading = str(said.get("shadingMode", "MLP_PE"))
    if shading not in SHADINGS:
        raise UsageError(f"{where} uses shading {shading!r}, expected one of {', '.join(SHADINGS)}")
    if shading.startswith("MLP"):
        for layer in (0, 2, 4):
            width = need(tensors, f"renderModule.mlp.{layer}.weight", where, (None, None)).shape[0]
            need(tensors, f"renderModule.mlp.{layer}.bias", where, (width,))
    activation = str(said.get("fea2denseAct", "softplus"))
    if activation not in ("softplus", "relu"):
        raise UsageError(f"{where} has density activation {activation!r}, expected softplus or relu")
    near_far = list(numbers(said.get("near_far", (2.0, 6.0)), 2, f"{where}: near_far"))
    box = _box(said.get("aabb"), where)
    return FieldFile(
        arch="tensorf-vm" if planes else "tensorf-cp",
        options={
            "resolution": resolution,
            "shading": shading,
            "app_dim": features,
            "pos_pe": _whole(said, "pos_pe", 6, where),
            "view_pe": _whole(said, "view_pe", 6, where),
            "fea_pe": _whole(said, "fea_pe", 6, where),
            "density_shift": number(said, "density_shift", -10, where),
            "distance_scale": number(said, "distance_scale", 25, where),
            "activation": activation,
        },
        tensors=tensors,
        aabb=box,
        warp="ndc" if near_far == [0.0, 1.0] else "aabb",
        occupancy=_mask(loaded, where, box),
        details={"format": "TensoRF", "near_far": near_far},
    )


def _mask(loaded: Mapping[str, Any], where: str, box: tuple[float, ...]) -> Tensor | None:
    if "alphaMask.mask" not in loaded:
        return None
    said = loaded.get("alphaMask.shape")
    shape = tuple(v for v in said if isinstance(v, int))[-3:] if isinstance(said, tuple | list | torch.Size) else ()
    packed = np.asarray(loaded["alphaMask.mask"])
    count = int(np.prod(shape, dtype=object)) if len(shape) == 3 and min(shape) > 1 else 0
    if not 0 < count <= MAX_MASK or packed.dtype != np.uint8 or packed.size != -(-count // 8):
        raise UsageError(f"{where}: alphaMask has shape {shape} and {packed.size} bytes, expected one bit per vertex")
    vertices = torch.from_numpy(np.unpackbits(packed.reshape(-1))[:count].reshape(shape)).to(torch.bool)
    cells = vertices.permute(2, 1, 0)
    for axis in range(3):
        # The mask is interpolated: a cell is empty only if all eight corners are.
        size = cells.shape[axis] - 1
        cells = cells.narrow(axis, 0, size) | cells.narrow(axis, 1, size)
    side = min(max(cells.shape), MERGED_SIDE)
    mask_box = _box(loaded.get("alphaMask.aabb"), where)
    return cubic(cells) if mask_box == box else any_over(cells, mask_box, box, (side,) * 3)


def _box(value: Any, where: str) -> tuple[float, float, float, float, float, float]:
    if not isinstance(value, Tensor) or value.numel() != 6:
        raise UsageError(f"{where} has no box of six numbers (aabb)")
    x0, y0, z0, x1, y1, z1 = value.detach().float().flatten().tolist()
    return (x0, y0, z0, x1, y1, z1)


def _whole(said: Mapping[str, Any], name: str, usual: int, where: str) -> int:
    value = said.get(name, usual)
    if not isinstance(value, int) or not 0 <= value <= 32:
        raise UsageError(f"{where}: {name} is {value!r}, expected a whole number up to 32")
    return value
