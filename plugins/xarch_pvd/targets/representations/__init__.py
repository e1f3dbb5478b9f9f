"""The six representations and their passage from and to files."""

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
    """Options of a representation; ``where`` says whose they are.

    Raises:
        UsageError: no such representation, an unknown key or a wrong value.
    """
    if arch not in OPTIONS:
        raise UsageError(f"no representation is called {arch!r}", f"known: {', '.join(OPTIONS)}")
    return validated(OPTIONS[arch], data, where)


def build_field(arch: str, options: BaseModel, **common: Any) -> RadianceField:
    """An untrained field of a representation.

    Args:
        arch: one of :data:`FIELDS`.
        options: the model in :data:`OPTIONS` of that name.
        common: box, warp, occupancy and so on, see :class:`RadianceField`.

    Raises:
        UsageError: there is no such representation.
    """
    if arch not in FIELDS:
        raise UsageError(f"no representation is called {arch!r}", f"known: {', '.join(FIELDS)}")
    kind: Any = FIELDS[arch]
    field: RadianceField = kind(options, **common)
    field.options = options.model_dump(mode="json")
    return field


__all__ = ["FIELDS", "OPTIONS", "build_field", "options_of"]
