"""Sparse voxels of svox2 (Plenoxels, arXiv 2112.05131): density relu(interpolated), colour max(0, harmonics + 0.5).

Legend: N points, K rows, C channels.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from xarch_field import spherical_harmonics
from xarch_pvd.source.foreign.base import ForeignField, log_relu, parameter
from xarch_pvd.source.formats.record import FieldFile, need


class Svox2(ForeignField):
    """Field with samples at the centres of the box's cells; empty samples are zero."""

    links: Tensor

    def __init__(self, record: FieldFile) -> None:
        super().__init__(record)
        tensors = record.tensors
        links = need(tensors, "links", record.arch, (None, None, None))
        density = need(tensors, "density_data", record.arch, (None, 1)).float()
        harmonics = need(tensors, "sh_data", record.arch, (len(density), None)).float()
        # Row 0 is the empty sample, which makes every link a valid row.
        rows = torch.cat((density, harmonics), dim=1)
        self.rows_KC = parameter(torch.cat((torch.zeros_like(rows[:1]), rows)))
        self.register_buffer("links", links.long().clamp_min(-1) + 1)
        self.degree = int(record.options["degree"])

    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        value_NC = self._interpolate(u_N3)
        values = {"sigma_raw": log_relu(value_NC[:, 0])}
        if "rgb" in want and d_N3 is not None:
            basis_N1K = spherical_harmonics(d_N3, self.degree)[:, None]
            colour = (value_NC[:, 1:].view(len(u_N3), 3, -1) * basis_N1K).sum(dim=-1)
            values["rgb"] = (colour + 0.5).clamp_min(0)
        return values

    def latent(self, u_N3: Tensor) -> Tensor:
        return self._interpolate(u_N3)[:, 1:]

    def _interpolate(self, u_N3: Tensor) -> Tensor:
        sizes = torch.tensor(self.links.shape, device=u_N3.device)
        place_N3 = torch.minimum((u_N3 * sizes - 0.5).clamp_min(0), sizes - 1.0)
        low_N3 = torch.minimum(place_N3.long(), sizes - 2)
        part_N3 = place_N3 - low_N3
        flat = self.links.reshape(-1)
        value_NC = u_N3.new_zeros(len(u_N3), self.rows_KC.shape[1])
        for corner in range(8):
            bits = torch.tensor([corner >> axis & 1 for axis in range(3)], device=u_N3.device)
            x, y, z = (low_N3 + bits).unbind(-1)
            weight_N = torch.where(bits.bool(), part_N3, 1 - part_N3).prod(dim=-1)
            row_N = flat[(x * sizes[1] + y) * sizes[2] + z]
            value_NC = value_NC + weight_N[:, None] * self.rows_KC[row_N]
        return value_NC
