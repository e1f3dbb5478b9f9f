"""Dense voxels of raw log-density and spherical harmonics (Plenoxels, arXiv 2112.05131, as in PVD)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from xarch.kernels import grid_encode
from xarch_field import spherical_harmonics
from xarch_pvd.source.latent import LatentField
from xarch_pvd.targets.representations.presets import Preset, Resolution, per_axis


class VoxelOptions(Preset):
    """Options of ``tensors``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"resolution": 96, "degree": 2},
        "paper": {"resolution": 128, "degree": 3},
    }
    resolution: Resolution = Field(96, description="samples per axis")
    degree: int = Field(2, ge=1, le=4, description="degree² spherical harmonics per colour channel")


class VoxelField(LatentField):
    """Field of a volume [X, Y, Z, 1 + 3 · degree²]: raw log-density, then harmonics of red, green and blue."""

    arch = "tensors"

    def __init__(self, options: VoxelOptions, **common: Any) -> None:
        super().__init__(**common)
        self.degree = options.degree
        self.volume = nn.Parameter(0.02 * torch.randn(*per_axis(options.resolution), 1 + 3 * options.degree**2))

    def grid_reads(self) -> int:
        return 8 * self.volume.shape[-1]

    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        if set(want) == {"sigma_raw"}:
            return {"sigma_raw": grid_encode(u_N3, [[(self.volume[..., :1], (0, 1, 2))]])[:, 0]}
        value_NC = grid_encode(u_N3, [[(self.volume, (0, 1, 2))]])
        values = {"sigma_raw": value_NC[:, 0]}
        if "rgb" in want and d_N3 is not None:
            basis_N1K = spherical_harmonics(d_N3, self.degree)[:, None, :]
            values["rgb"] = torch.sigmoid((value_NC[:, 1:].unflatten(1, (3, -1)) * basis_N1K).sum(dim=-1))
        return values

    def latent(self, u_N3: Tensor) -> Tensor:
        return grid_encode(u_N3, [[(self.volume[..., 1:], (0, 1, 2))]])

    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        return {"volume": {"volume": self.volume}}

    def param_groups(self) -> dict[str, list[str]]:
        return {"grid": ["volume"], "net": []}
