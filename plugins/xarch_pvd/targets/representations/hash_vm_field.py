"""Hash tables plus planes times lines in one field: one head reads the sum of their features.

The planes represent smooth, large structures, the tables fine detail. A field of either kind can initialise it; the
other half starts at (almost) zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from xarch_field import FeatureField
from xarch_pvd.targets.representations.factor_fields import VMField, VMOptions
from xarch_pvd.targets.representations.hash_field import HashField, HashOptions


class HashVMOptions(HashOptions, VMOptions):
    """Options of ``hash+vm``, combining both."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        preset: {**HashOptions.PRESETS[preset], **VMOptions.PRESETS[preset]} for preset in HashOptions.PRESETS
    }


class HashVMField(HashField, VMField):
    """F = F of the tables + F of the planes and lines."""

    arch = "hash+vm"

    def __init__(self, options: HashVMOptions, **common: Any) -> None:
        FeatureField.__init__(self, **common)
        self.add_tables(options)
        self.add_basis(options, 3)
        self.add_planes(options)
        with torch.no_grad():
            for line in self.lines:
                line.zero_()

    def grid_reads(self) -> int:
        return HashField.grid_reads(self) + VMField.grid_reads(self)

    def features(self, u_N3: Tensor) -> Tensor:
        return HashField.features(self, u_N3) + VMField.features(self, u_N3)

    def raw(self, u_N3: Tensor) -> Tensor:
        return HashField.features(self, u_N3)[:, 0] + VMField.raw(self, u_N3)

    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        return {**VMField.state_blocks(self), **HashField.state_blocks(self)}

    def param_groups(self) -> dict[str, list[str]]:
        grid = HashField.param_groups(self)["grid"] + VMField.param_groups(self)["grid"]
        return {"grid": grid, "net": [n for n, _ in self.named_parameters() if n not in grid]}
