"""The six representations and their conversion from and to file records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from xarch import UsageError, validated
from xarch_field import RadianceField
from xarch_pvd.targets.representations.factor_fields import CPField, CPOptions, VMField, VMOptions
from xarch_pvd.targets.representations.hash_field import HashField, HashOptions
from xarch_pvd.targets.representations.hash_vm_field import HashVMField, HashVMOptions
from xarch_pvd.targets.representations.mlp_field import MLPField, MLPOptions
from xarch_pvd.targets.representations.presets import Preset
from xarch_pvd.targets.representations.voxel_field import VoxelField, VoxelOptions

OPTIONS: dict[str, type[Preset]] = {
    "hash": HashOptions,
    "mlp": MLPOptions,
    "vm": VMOptions,
    "cp": CPOptions,
    "hash+vm": HashVMOptions,
    "tensors": VoxelOptions,
}
FIELDS: dict[str, type[RadianceField]] = {
    "hash": HashField,
    "mlp": MLPField,
    "vm": VMField,
    "cp": CPField,
    "hash+vm": HashVMField,
    "tensors": VoxelField,
}


def options_of(arch: str, data: Mapping[str, Any], where: str) -> Preset:
    """Validate options of a representation; ``where`` names them in errors.

    Raises:
        UsageError: the representation or a key is unknown, or a value is invalid.
    """
    if arch not in OPTIONS:
        raise UsageError(f"unknown representation {arch!r}", f"known: {', '.join(OPTIONS)}")
    return validated(OPTIONS[arch], data, where)


def build_field(arch: str, options: BaseModel, **common: Any) -> RadianceField:
    """Build an untrained field of a representation.

    Args:
        arch: one of :data:`FIELDS`.
        options: an instance of its model in :data:`OPTIONS`.
        common: box, warp, occupancy and so on, see :class:`RadianceField`.

    Raises:
        UsageError: the representation is unknown.
    """
    if arch not in FIELDS:
        raise UsageError(f"unknown representation {arch!r}", f"known: {', '.join(FIELDS)}")
    kind: Any = FIELDS[arch]
    field: RadianceField = kind(options, **common)
    field.options = options.model_dump(mode="json")
    return field


__all__ = ["FIELDS", "OPTIONS", "build_field", "options_of"]
