"""The mlp of progressive volume distillation in a box other than ±1: its encoding reads world coordinates."""

from __future__ import annotations

from torch import Tensor

from xarch import UsageError, validated
from xarch_pvd.source.formats.record import FieldFile, need
from xarch_pvd.targets.representations.mlp_field import MLPField, MLPOptions


class WorldMLP(MLPField):
    """An ``mlp`` whose sinusoids are in world units; feature and heads are those of ``mlp``."""

    arch = "torch-ngp-mlp"

    def __init__(self, options: MLPOptions, *, bound: float, **common: object) -> None:
        super().__init__(options, **common)
        self.bound = bound

    def encode(self, u_N3: Tensor) -> Tensor:
        return super().encode(((2 * u_N3 - 1) * self.bound + 1) / 2)


def world_mlp(record: FieldFile) -> WorldMLP:
    """Build the field of a record.

    Raises:
        UsageError: a tensor is missing or its shape differs.
    """
    known = {k: v for k, v in record.options.items() if k in MLPOptions.model_fields}
    low, high = record.aabb[:3], record.aabb[3:]
    field = WorldMLP(
        validated(MLPOptions, known, f"options of a {record.arch} field"),
        bound=record.bound,
        aabb=[list(low), list(high)],
        occupancy=record.occupancy,
        sigma_clip=record.sigma_clip or (-100.0, 30.0),
        background=record.background or (1.0, 1.0, 1.0),
    )
    for name, parameter in field.named_parameters():
        try:
            given = need(record.tensors, name, record.arch, tuple(parameter.shape))
        except UsageError as e:
            raise UsageError(f"this {record.arch} field has layers that do not match its options: {e.what}") from e
        parameter.data.copy_(given)
    return field
