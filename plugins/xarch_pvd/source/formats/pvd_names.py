"""Mapping of tensor names between torch-ngp or PVD checkpoints and xarch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

RENAMED = (
    ("encoder.embeddings", "encoder.table"),
    ("nerf_mlp.", "trunk."),
    ("sigma_mat.", "sigma_planes."),
    ("sigma_vec.", "sigma_lines."),
    ("color_mat.", "color_planes."),
    ("color_vec.", "color_lines."),
    ("basis_mat.", "basis."),
    ("sigma_net.", "sigma_net."),
    ("color_net.", "color_net."),
)


def to_xarch(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the field's tensors under xarch's names, without grids, counters and boxes."""
    named = {new + key[len(old) :]: t for key, t in tensors.items() for old, new in RENAMED if key.startswith(old)}
    if "tensor_volume.0" in tensors:
        volume = tensors["tensor_volume.0"]
        # grid_sample reads x from the last axis and the authors pass points unchanged, so their axes are z, y, x.
        named["volume"] = volume.permute(0, 1, 4, 3, 2)[0].contiguous() if volume.ndim == 5 else volume
    return named


def to_torch_ngp(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert :func:`to_xarch`."""
    named = {old + key[len(new) :]: t for key, t in tensors.items() for old, new in RENAMED if key.startswith(new)}
    if "volume" in tensors:
        named["tensor_volume.0"] = tensors["volume"].permute(0, 3, 2, 1)[None].contiguous()
    return named
