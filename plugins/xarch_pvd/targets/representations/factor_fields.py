"""Factorised grids (TensoRF, arXiv 2203.09517): planes times lines (VM) and products of three lines (CP).

Density and colour share one grid whose first channels are the density's, so one lookup serves both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xarch.kernels import grid_encode
from xarch_field import FEATURES, FeatureField, named_tensors
from xarch_pvd.targets.representations.presets import Preset, Resolution, per_axis

PLANES = ((1, 0), (2, 0), (2, 1))
"""Axes of the planes XY, XZ, YZ, slow axis first."""
LINES = (2, 1, 0)


class VMOptions(Preset):
    """Options of ``vm``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"resolution": 64, "density_rank": 8, "colour_rank": 16},
        "paper": {"resolution": 300, "density_rank": 16, "colour_rank": 48},
        "npu-vm": {"resolution": 128, "density_rank": 8, "colour_rank": 24},
    }
    resolution: Resolution = Field(64, description="samples per axis")
    density_rank: int = Field(8, ge=1, le=4096, description="density channels per plane")
    colour_rank: int = Field(16, ge=1, le=4096, description="colour channels per plane")
    feature_clip: tuple[float, float] | None = Field(None, description="feature bounds, for files that clip features")
    start: Literal["teacher", "random"] = Field(
        "teacher", description="initialisation; `teacher`: fitted to the teacher"
    )


class CPOptions(VMOptions):
    """Options of ``cp``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"resolution": 128, "density_rank": 32, "colour_rank": 64},
        "paper": {"resolution": 500, "density_rank": 96, "colour_rank": 288},
    }
    resolution: Resolution = Field(128, description="samples per axis")
    density_rank: int = Field(32, ge=1, le=4096, description="density channels per line")
    colour_rank: int = Field(64, ge=1, le=4096, description="colour channels per line")


class FactorField(FeatureField):
    """Base of VM and CP: the first channels of each group sum to the raw log-density, the rest are mixed."""

    def __init__(self, options: VMOptions, groups: int, **common: Any) -> None:
        super().__init__(**common)
        self.add_basis(options, groups)

    def add_basis(self, options: VMOptions, groups: int) -> None:
        """Add the layer that mixes the field's products."""
        self.sizes = per_axis(options.resolution)
        """Return samples along x, y and z."""
        self.split, self.groups, self.feature_clip = options.density_rank, groups, options.feature_clip
        self.basis = nn.Linear(groups * options.colour_rank, FEATURES - 1, bias=False)

    @abstractmethod
    def factors(self) -> list[list[tuple[Tensor, tuple[int, ...]]]]:
        """Return groups of factors with their axes."""

    def grid_reads(self) -> int:
        return sum(2 ** len(axes) * grid.shape[-1] for group in self.factors() for grid, axes in group)

    def features(self, u_N3: Tensor) -> Tensor:
        product_NGC = grid_encode(u_N3, self.factors()).unflatten(1, (self.groups, -1))
        raw_N1 = product_NGC[:, :, : self.split].sum(dim=(1, 2))[:, None]
        mixed_NG = self.basis(product_NGC[:, :, self.split :].flatten(1))
        if self.feature_clip is not None:
            mixed_NG = mixed_NG.clamp(*self.feature_clip)
        return torch.cat((raw_N1, mixed_NG), dim=-1)

    def raw(self, u_N3: Tensor) -> Tensor:
        thin = [[(grid[..., : self.split], axes) for grid, axes in group] for group in self.factors()]
        return grid_encode(u_N3, thin).sum(dim=-1)

    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        return {"factors": self.grids(), "basis": named_tensors(self.basis), "color_net": named_tensors(self.color_net)}

    def param_groups(self) -> dict[str, list[str]]:
        grid = list(self.grids())
        return {"grid": grid, "net": [n for n, _ in self.named_parameters() if n not in grid]}

    def grids(self) -> dict[str, Tensor]:
        """Return planes and lines by name."""
        return {n: p for n, p in self.named_parameters() if n.startswith(("planes.", "lines."))}


class VMField(FactorField):
    """Field of planes [S, S, C] and lines [S, C] in three groups."""

    arch = "vm"

    def __init__(self, options: VMOptions, **common: Any) -> None:
        super().__init__(options, 3, **common)
        self.add_planes(options)

    def add_planes(self, options: VMOptions) -> None:
        """Add the field's planes and lines."""
        size, channels = per_axis(options.resolution), options.density_rank + options.colour_rank
        self.planes = nn.ParameterList([nn.Parameter(0.1 * torch.randn(size[b], size[a], channels)) for b, a in PLANES])
        self.lines = nn.ParameterList([nn.Parameter(0.1 * torch.randn(size[c], channels)) for c in LINES])

    def factors(self) -> list[list[tuple[Tensor, tuple[int, ...]]]]:
        return [[(self.planes[m], PLANES[m]), (self.lines[m], (LINES[m],))] for m in range(3)]


class CPField(FactorField):
    """Field of three lines [S, C] in one group."""

    arch = "cp"

    def __init__(self, options: CPOptions, **common: Any) -> None:
        super().__init__(options, 1, **common)
        size, channels = per_axis(options.resolution), options.density_rank + options.colour_rank
        self.lines = nn.ParameterList([nn.Parameter(0.2 * torch.randn(size[c], channels)) for c in LINES])

    def factors(self) -> list[list[tuple[Tensor, tuple[int, ...]]]]:
        return [[(self.lines[m], (LINES[m],)) for m in range(3)]]
