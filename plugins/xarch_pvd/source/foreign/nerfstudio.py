"""Fields of nerfstudio's torch backend: hash tables (instant-ngp, nerfacto) and the original NeRF.

Legend: N points, F features of a level, G geometry features.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from xarch.kernels import HashConfig, hash_encode
from xarch_field import spherical_harmonics
from xarch_pvd.source.foreign.base import ForeignField, Layers, log_softplus, parameter, turns_by_coordinate
from xarch_pvd.source.formats.record import FieldFile, need, numbered


class NerfstudioHash(ForeignField):
    """Field with every level hashed; density is scale · exp, colour uses harmonics of (d + 1) / 2.

    The harmonics have no Condon–Shortley sign: functions of odd order are negated relative to ours.
    """

    signs: Tensor

    def __init__(self, record: FieldFile) -> None:
        super().__init__(record)
        tensors, said = record.tensors, record.options
        self.config = HashConfig(
            levels=int(said["levels"]),
            features=int(said["features"]),
            log2_size=int(said["log2_table"]),
            base=int(said["base_resolution"]),
            finest=float(said["finest_resolution"]),
            style="nerfstudio",
        )
        rows = (self.config.rows, self.config.features)
        self.table = parameter(need(tensors, "mlp_base.model.0.hash_table", record.arch, rows))
        self.base = Layers(tensors, _names(record, "mlp_base.model.1.layers"), record.arch)
        self.head = Layers(tensors, _names(record, "mlp_head.layers"), record.arch)
        self.scale = math.log(float(said["density_scale"]))
        self.appearance = parameter(tensors.get("appearance", torch.zeros(0)))
        self.register_buffer("signs", 1.0 - 2.0 * (torch.arange(16) % 2), persistent=False)

    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        base_NG = self._base(u_N3)
        values = {"sigma_raw": base_NG[:, 0] + self.scale}
        if "rgb" in want and d_N3 is not None:
            harmonics = spherical_harmonics((d_N3 + 1) / 2) * self.signs
            look = self.appearance.expand(len(u_N3), -1)
            values["rgb"] = torch.sigmoid(self.head(torch.cat((harmonics, base_NG[:, 1:], look), dim=-1)))
        return values

    def latent(self, u_N3: Tensor) -> Tensor:
        return self._base(u_N3)[:, 1:]

    def _base(self, u_N3: Tensor) -> Tensor:
        return self.base(hash_encode(u_N3, self.table, self.config))


class NerfstudioVanilla(ForeignField):
    """NeRF (arXiv 2003.08934) as in nerfstudio: frequencies of 2π, softplus density, sigmoid colour."""

    def __init__(self, record: FieldFile) -> None:
        super().__init__(record)
        tensors, said = record.tensors, record.options
        self.position = int(said["position_frequencies"]), float(said["position_exponent"])
        self.direction = int(said["direction_frequencies"]), float(said["direction_exponent"])
        skip = said["skip"]
        self.base = Layers(tensors, _names(record, "mlp_base.layers"), record.arch, skip=skip, last=True)
        self.density_layer = Layers(tensors, ["field_output_density.net"], record.arch)
        self.head = Layers(tensors, [*_names(record, "mlp_head.layers"), "field_heads.0.net"], record.arch)

    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        base = self.latent(u_N3)
        values = {"sigma_raw": log_softplus(self.density_layer(base)[:, 0])}
        if "rgb" in want and d_N3 is not None:
            directions = torch.cat((turns_by_coordinate(d_N3, *self.direction), d_N3), dim=-1)
            values["rgb"] = torch.sigmoid(self.head(torch.cat((directions, base), dim=-1)))
        return values

    def latent(self, u_N3: Tensor) -> Tensor:
        x_N3 = self.to_world(u_N3)
        return self.base(torch.cat((turns_by_coordinate(x_N3, *self.position), x_N3), dim=-1))


def _names(record: FieldFile, prefix: str) -> list[str]:
    return [f"{prefix}.{i}" for i in range(len(numbered(record.tensors, prefix, ".weight")))]
