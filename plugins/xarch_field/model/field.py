"""The contract of a radiance field: world points and directions in, raw log-density, feature and colour out.

The interface is that of progressive volume distillation (arXiv 2211.15977, section 3): block 1 maps a point to a
feature F = (raw log-density, 15 geometry features), block 2 maps (F, direction) to density and colour.

Legend: N points, 3 = x, y, z (or r, g, b), H occupancy cells per axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from xarch import UsageError
from xarch_field.model import occupancy as occupancies
from xarch_field.model import warp as warps
from xarch_field.model.head import FEATURES, ColourHead, trunc_exp

WANTS = ("feature", "sigma_raw", "sigma", "rgb")


class RadianceField(nn.Module, ABC):
    """A field over the box ``aabb``. A representation implements :meth:`evaluate` on the unit cube.

    Args:
        aabb: lower and upper corner in world units, [2, 3] or nested sequences.
        occupancy: bool [H, H, H] over the unit cube in x, y, z order; None means a single occupied cell.
        warp, warp_parameters: mapping from world points to the unit cube, see :mod:`xarch_field.model.warp`.
        sigma_clip: bounds to which the raw log-density is clipped before exp.
        background: default colour behind the field.
        march_aabb: world box that rays cross, [2, 3]; None uses the occupied part of ``aabb``.

    Attributes:
        arch: name of the representation.
        options: constructor options of the representation, as plain data; files store them beside the tensors.
        has_feature: whether the field is split into block 1 and block 2.
    """

    arch: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    has_feature: bool = True
    aabb: Tensor
    occupancy: Tensor
    march_aabb: Tensor | None

    def __init__(
        self,
        *,
        aabb: Tensor | Sequence[Sequence[float]],
        occupancy: Tensor | None = None,
        warp: str = "aabb",
        warp_parameters: Sequence[float] = (),
        sigma_clip: tuple[float, float] = (-2.0, 7.0),
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
        march_aabb: Tensor | Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if warp not in warps.WARPS:
            raise UsageError(f"unknown warp {warp!r} of a field", f"known warps: {', '.join(warps.WARPS)}")
        self.register_buffer("aabb", _box("aabb", aabb))
        self.register_buffer("occupancy", torch.ones(1, 1, 1, dtype=torch.bool) if occupancy is None else occupancy)
        self.register_buffer("march_aabb", None if march_aabb is None else _box("march_aabb", march_aabb))
        self.warp = warp
        self.warp_parameters = tuple(warp_parameters)
        self.sigma_clip = (float(sigma_clip[0]), float(sigma_clip[1]))
        red, green, blue = background
        self.background = (red, green, blue)
        self._crossed: tuple[Any, tuple[Tensor, Tensor], Tensor] | None = None

    def grid_reads(self) -> int:
        """Return how many values one point reads from tables and grids, for time estimates."""
        return 0

    @abstractmethod
    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        """Return values at points of the unit cube (any finite value at points outside it).

        Args:
            u_N3: points in [0, 1]³.
            d_N3: unit directions; needed for "rgb" only.
            want: any of "feature", "sigma_raw", "rgb".

        Returns:
            feature [N, 16] and sigma_raw [N], both unclipped, rgb [N, 3] in [0, 1].
        """

    @abstractmethod
    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        """Map block names ("encoder", "sigma_net", "color_net", ...) to named tensors, inherited where shapes match."""

    @abstractmethod
    def param_groups(self) -> dict[str, list[str]]:
        """Return parameter names by group: "grid" (tables and sampled tensors) and "net" (layers)."""

    def to_unit(self, x_N3: Tensor) -> Tensor:
        """Map world points to the unit cube."""
        return warps.to_unit(x_N3, self.aabb, self.warp, self.warp_parameters)

    def to_world(self, u_N3: Tensor) -> Tensor:
        """Map points of the unit cube to the world."""
        return warps.to_world(u_N3, self.aabb, self.warp, self.warp_parameters)

    def occupied(self, x_N3: Tensor) -> Tensor:
        """Return whether world points lie in occupied cells, bool [N]."""
        return occupancies.lookup(self.occupancy, self.to_unit(x_N3))

    def density(self, raw_N: Tensor, occupied_N: Tensor | None = None) -> Tensor:
        """Return exp of the clipped raw log-density, per world unit, zero where empty; always float32 or wider."""
        raw_N = raw_N if raw_N.dtype == torch.float64 else raw_N.float()
        sigma_N = trunc_exp(raw_N.clamp(*self.sigma_clip))
        return sigma_N if occupied_N is None else sigma_N * occupied_N.to(sigma_N.dtype)

    def query(self, x_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        """Return the wanted values at world points in one pass.

        Args:
            x_N3: world points.
            d_N3: unit directions, or None if no "rgb" is wanted.
            want: any of "feature" [N, 16], "sigma_raw" [N] (both unclipped), "sigma" [N] (clipped, masked), "rgb"
                [N, 3].

        Raises:
            UsageError: unknown name, "feature" of a field that has none, or "rgb" without directions.
        """
        self._check(d_N3, want)
        u_N3 = self.to_unit(x_N3)
        inner = {"sigma_raw" if w == "sigma" else w for w in want}
        values = self.evaluate(u_N3, d_N3, inner)
        if "sigma" in want:
            values["sigma"] = self.density(values["sigma_raw"], occupancies.lookup(self.occupancy, u_N3))
        return {name: values[name] for name in want}

    def block1(self, x_N3: Tensor) -> Tensor:
        """Return feature F [N, 16] at world points, unclipped; column 0 is the raw log-density.

        Raises:
            UsageError: the representation has no feature.
        """
        return self.query(x_N3, None, ("feature",))["feature"]

    def sigma_raw(self, x_N3: Tensor) -> Tensor:
        """Return the raw log-density [N] at world points, neither clipped nor masked."""
        return self.query(x_N3, None, ("sigma_raw",))["sigma_raw"]

    def colour(self, source: Tensor, d_N3: Tensor) -> Tensor:
        """Return colour [N, 3] from features [N, 16] (fields with features) or world points [N, 3] (others)."""
        return self.query(source, d_N3, ("rgb",))["rgb"]

    def forward(self, x_N3: Tensor, d_N3: Tensor) -> tuple[Tensor, Tensor]:
        """Return density per world unit [N] and colour [N, 3]."""
        values = self.query(x_N3, d_N3, ("sigma", "rgb"))
        return values["sigma"], values["rgb"]

    def march_box(self) -> Tensor:
        """Return the world box [2, 3] that rays march through: the occupied part, or ``march_aabb``.

        A contraction extends to infinity; rays then stop at eight times the inner box.

        Raises:
            UsageError: warp "ndc" without ``march_aabb``.
        """
        if self.march_aabb is not None:
            return self.march_aabb
        if self.warp == "aabb":
            return self._occupied_box()
        if self.warp == "ndc":
            raise UsageError("a field in normalised device coordinates has no world box", "set its march_aabb")
        middle = self.aabb.mean(dim=0)
        return middle + 8 * (self.aabb - middle)

    def _occupied_box(self) -> Tensor:
        """Return the occupied part of the box, recomputed only when occupancy or box have changed."""
        parts = (self.occupancy, self.aabb)
        if torch.is_inference_mode_enabled() or any(t.is_inference() for t in parts):
            return self.to_world(occupancies.bounds(self.occupancy))
        key = tuple((id(t), t._version) for t in parts)
        if self._crossed is None or self._crossed[0] != key:
            # Keep the tensors with the key: while they are alive, no other tensor can have their ids.
            self._crossed = key, parts, self.to_world(occupancies.bounds(self.occupancy))
        return self._crossed[2]

    def set_occupancy(self, grid_HHH: Tensor) -> None:
        """Replace the occupancy with a grid of any resolution."""
        self.register_buffer("occupancy", grid_HHH.to(self.aabb.device, torch.bool))

    def _check(self, d_N3: Tensor | None, want: Collection[str]) -> None:
        unknown = sorted(set(want) - set(WANTS))
        if unknown:
            raise UsageError(f"unknown field values {', '.join(unknown)}", f"known values: {', '.join(WANTS)}")
        if "feature" in want and not self.has_feature:
            raise UsageError(
                f"{type(self).__name__} has no intermediate feature",
                "match only density and colour (stages without the volume feature)",
            )
        if "rgb" in want and d_N3 is None:
            raise UsageError("colour needs directions", "pass unit directions [N, 3]")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Accept an occupancy of any resolution."""
        grid = state_dict.get(prefix + "occupancy")
        if grid is not None and grid.shape != self.occupancy.shape:
            self.register_buffer("occupancy", torch.empty(grid.shape, dtype=torch.bool, device=self.aabb.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FeatureField(RadianceField):
    """Field in two blocks: the representation computes :meth:`features`, the shared head the colour."""

    color_net: ColourHead

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.color_net = ColourHead()

    @abstractmethod
    def features(self, u_N3: Tensor) -> Tensor:
        """Return feature F [N, 16] at points of the unit cube."""

    def raw(self, u_N3: Tensor) -> Tensor:
        """Return the raw log-density [N] at points of the unit cube; override if cheaper than the whole feature."""
        return self.features(u_N3)[:, 0]

    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        if set(want) == {"sigma_raw"}:
            return {"sigma_raw": self.raw(u_N3)}
        feature_NF = self.features(u_N3)
        values = {"feature": feature_NF, "sigma_raw": feature_NF[:, 0]}
        if "rgb" in want and d_N3 is not None:
            values["rgb"] = self.color_net.colour(feature_NF[:, 1:], d_N3)
        return values

    def colour(self, source: Tensor, d_N3: Tensor) -> Tensor:
        if source.shape[-1] != FEATURES:
            raise UsageError(f"colour of a field with features needs [N, {FEATURES}], got {list(source.shape)}")
        return self.color_net.colour(source[:, 1:], d_N3)


def named_tensors(module: nn.Module, *, skip: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return the parameters of a module by name, for :meth:`RadianceField.state_blocks`."""
    return {name: p for name, p in module.named_parameters() if name not in set(skip)}


def _box(name: str, box: Tensor | Sequence[Sequence[float]]) -> Tensor:
    corners = torch.as_tensor(box, dtype=torch.float32)
    if corners.shape != (2, 3):
        raise UsageError(f"{name} needs two corners [2, 3], got shape {list(corners.shape)}")
    if corners.device.type != "meta" and not bool((corners[1] > corners[0]).all()):
        raise UsageError(f"{name} needs upper > lower on every axis, got {corners.tolist()}")
    return corners.clone()
