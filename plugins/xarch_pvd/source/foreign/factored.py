"""Planes times lines, and products of lines, of TensoRF, torch-ngp and nerfstudio.

Sources: TensoRF (arXiv 2203.09517) and its code; the tensoRF network of torch-ngp; nerfstudio's tensorf field. They
differ in names, density activation, frequency encodings and heads.

Legend: N points, R components, C colour components, A appearance features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from xarch import UsageError
from xarch.kernels import grid_encode
from xarch_field import spherical_harmonics
from xarch_pvd.source.foreign.base import (
    ForeignField,
    Layers,
    log_relu,
    log_softplus,
    octaves_by_coordinate,
    octaves_interleaved,
    parameter,
    turns_by_coordinate,
)
from xarch_pvd.source.formats.record import FieldFile, need, numbered
from xarch_pvd.targets.representations.factor_fields import LINES, PLANES

Factor = tuple[Tensor, tuple[int, ...]]
Shade = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(appearance features [N, A], points [N, 3] in [-1, 1], directions [N, 3]) -> colour [N, 3]."""


class Factored(ForeignField):
    """Field whose density is an activation of a sum of components and whose colour is a head on mixed components.

    Args:
        density, colour: planes [1, R, Nb, Na] (empty for products of lines) and lines [1, R, N, 1].
        basis: mixes colour components, [A, C].
        log_density: log of the density activation.
        head: layers used by ``shade``, stored here so that they move with the field.
        shade: see :data:`Shade`.
    """

    def __init__(
        self,
        record: FieldFile,
        *,
        density: tuple[list[Tensor], list[Tensor]],
        colour: tuple[list[Tensor], list[Tensor]],
        basis: Tensor,
        log_density: Callable[[Tensor], Tensor],
        head: Layers | None,
        shade: Shade,
    ) -> None:
        super().__init__(record)
        tables = [_grids(*part, record.arch) for part in (density, colour)]
        self.density_grids, self.colour_grids = (nn.ParameterList(map(parameter, part)) for part in tables)
        self.basis = parameter(basis)
        self.head = head
        self.log_density, self.shade = log_density, shade

    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        raw_N = self.log_density(grid_encode(u_N3, _groups(self.density_grids)).sum(dim=-1))
        values = {"sigma_raw": raw_N}
        if "rgb" in want and d_N3 is not None:
            values["rgb"] = self.shade(self.latent(u_N3), 2 * u_N3 - 1, d_N3)
        return values

    def latent(self, u_N3: Tensor) -> Tensor:
        return grid_encode(u_N3, _groups(self.colour_grids)) @ self.basis.T


def tensorf(record: FieldFile) -> Factored:
    """Build the field of a TensoRF checkpoint: density distance_scale · activation(sum + shift)."""
    tensors, said = record.tensors, record.options
    scale = torch.tensor(float(said["distance_scale"])).log()
    shift = float(said["density_shift"])
    softplus = said["activation"] == "softplus"

    def log_density(sum_N: Tensor) -> Tensor:
        return scale + (log_softplus(sum_N + shift) if softplus else log_relu(sum_N))

    shading = str(said["shading"])
    head = None
    if shading.startswith("MLP"):
        head = Layers(tensors, [f"renderModule.mlp.{i}" for i in (0, 2, 4)], record.arch)
    return Factored(
        record,
        density=(numbered(tensors, "density_plane"), numbered(tensors, "density_line")),
        colour=(numbered(tensors, "app_plane"), numbered(tensors, "app_line")),
        basis=need(tensors, "basis_mat.weight", record.arch, (None, None)),
        log_density=log_density,
        head=head,
        shade=_tensorf_shade(shading, said, head),
    )


def _tensorf_shade(shading: str, said: Mapping[str, int], head: Layers | None) -> Shade:
    if head is None:
        return _harmonic if shading == "SH" else lambda features, _, d: features

    def shade(features_NA: Tensor, x_N3: Tensor, d_N3: Tensor) -> Tensor:
        parts = [features_NA, d_N3]
        if shading == "MLP_Fea":
            parts.append(octaves_by_coordinate(features_NA, int(said["fea_pe"])))
        elif shading == "MLP_PE":
            parts.append(octaves_by_coordinate(x_N3, int(said["pos_pe"])))
        parts.append(octaves_by_coordinate(d_N3, int(said["view_pe"])))
        return torch.sigmoid(head(torch.cat(parts, dim=-1)))

    return shade


def _harmonic(features_NA: Tensor, x_N3: Tensor, d_N3: Tensor) -> Tensor:
    basis_N1K = spherical_harmonics(d_N3, 3)[:, None]
    return torch.relu((features_NA.view(len(d_N3), 3, 9) * basis_N1K).sum(dim=-1) + 0.5)


def torch_ngp_factored(record: FieldFile) -> Factored:
    """Build the field of torch-ngp's own tensoRF network: density exp(sum)."""
    tensors, said = record.tensors, record.options
    names = [f"color_net.{i}" for i in range(len(numbered(tensors, "color_net", ".weight")))]
    head = Layers(tensors, names, record.arch)

    def shade(features_NA: Tensor, x_N3: Tensor, d_N3: Tensor) -> Tensor:
        features = octaves_interleaved(features_NA, int(said["feature_frequencies"]))
        directions = octaves_interleaved(d_N3, int(said["direction_frequencies"]))
        return torch.sigmoid(head(torch.cat((features, directions), dim=-1)))

    return Factored(
        record,
        density=(numbered(tensors, "sigma_planes"), numbered(tensors, "sigma_lines")),
        colour=(numbered(tensors, "color_planes"), numbered(tensors, "color_lines")),
        basis=need(tensors, "basis.weight", record.arch, (None, None)),
        log_density=lambda sum_N: sum_N,
        head=head,
        shade=shade,
    )


def nerfstudio_factored(record: FieldFile) -> Factored:
    """Build the field of nerfstudio's tensorf: density relu(sum)."""
    tensors, said = record.tensors, record.options
    names = [f"mlp_head.layers.{i}" for i in range(len(numbered(tensors, "mlp_head.layers", ".weight")))]
    head = Layers(tensors, [*names, "field_output_rgb.net"], record.arch)

    def part(kind: str) -> tuple[list[Tensor], list[Tensor]]:
        planes = tensors.get(f"{kind}_encoding.plane_coef")
        lines = need(tensors, f"{kind}_encoding.line_coef", record.arch, (3, None, None, 1))
        return [] if planes is None else list(planes.split(1)), list(lines.split(1))

    def shade(features_NA: Tensor, x_N3: Tensor, d_N3: Tensor) -> Tensor:
        features = turns_by_coordinate(features_NA, int(said["feature_frequencies"]), float(said["feature_exponent"]))
        d = turns_by_coordinate(d_N3, int(said["direction_frequencies"]), float(said["direction_exponent"]))
        return torch.sigmoid(head(torch.cat((features_NA, d_N3, features, d), dim=-1)))

    return Factored(
        record,
        density=part("density"),
        colour=part("color"),
        basis=need(tensors, "B.weight", record.arch, (None, None)),
        log_density=log_relu,
        head=head,
        shade=shade,
    )


def _grids(planes: list[Tensor], lines: list[Tensor], arch: str) -> list[Tensor]:
    """Return channels-last grids: planes [Nb, Na, R] first, then lines [N, R]."""
    if len(lines) != 3 or len(planes) not in (0, 3):
        raise UsageError(f"a {arch} field has {len(planes)} planes and {len(lines)} lines, expected none or 3, and 3")
    return [*(p[0].permute(1, 2, 0) for p in planes), *(line[0, :, :, 0].T for line in lines)]


def _groups(grids: nn.ParameterList) -> list[list[Factor]]:
    tables = list(grids)
    lines: list[Factor] = [(table, (axis,)) for table, axis in zip(tables[-3:], LINES, strict=True)]
    if len(tables) == 3:
        return [lines]
    return [[(tables[m], PLANES[m]), lines[m]] for m in range(3)]
