"""Hash tables and a small network (Instant-NGP, arXiv 2201.05989, as in torch-ngp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from xarch.kernels import HashConfig, hash_encode
from xarch_field import FEATURES, FeatureField, PlainMLP, named_tensors
from xarch_pvd.targets.representations.presets import Preset


class HashOptions(Preset):
    """Options of ``hash``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"levels": 8, "log2_size": 15, "finest": 256},
        "paper": {"levels": 14, "log2_size": 19, "finest": 2048},
    }
    levels: int = Field(8, ge=1, le=32)
    features: int = Field(2, ge=1, le=8, description="channels per level")
    log2_size: int = Field(15, ge=4, le=24, description="log2 of the maximum rows per level")
    base: int = Field(16, ge=2, le=1 << 16, description="cells per axis of the coarsest level")
    finest: float = Field(256, ge=2, le=1 << 20, description="cells per axis of the finest level")
    hidden: int = Field(64, ge=1, le=1 << 14)
    sizes: tuple[Annotated[int, Field(ge=1, le=1 << 28)], ...] = Field(
        (), max_length=32, description="rows of each level, for files that specify them"
    )

    @model_validator(mode="after")
    def _one_size_a_level(self) -> HashOptions:
        if self.sizes and len(self.sizes) != self.levels:
            raise ValueError(f"there are {len(self.sizes)} sizes for {self.levels} levels")
        return self


class Table(nn.Module):
    """Table with the rows of all levels."""

    def __init__(self, config: HashConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.empty(config.rows, config.features).uniform_(-1e-4, 1e-4))

    def forward(self, u_N3: Tensor) -> Tensor:
        return hash_encode(u_N3, self.table, self.config)


class HashField(FeatureField):
    """Field whose ``sigma_net`` maps table lookups to the feature."""

    arch = "hash"

    def __init__(self, options: HashOptions, **common: Any) -> None:
        super().__init__(**common)
        self.add_tables(options)

    def add_tables(self, options: HashOptions) -> None:
        """Add the field's tables and ``sigma_net``."""
        config = HashConfig(
            levels=options.levels,
            features=options.features,
            log2_size=options.log2_size,
            base=options.base,
            finest=options.finest,
            sizes=tuple(options.sizes),
        )
        self.encoder = Table(config)
        self.sigma_net = PlainMLP((config.width, options.hidden, FEATURES))

    def grid_reads(self) -> int:
        return 8 * self.encoder.config.levels * self.encoder.config.features

    def features(self, u_N3: Tensor) -> Tensor:
        return self.sigma_net(self.encoder(u_N3))

    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        return {
            "encoder": named_tensors(self.encoder),
            "sigma_net": named_tensors(self.sigma_net),
            "color_net": named_tensors(self.color_net),
        }

    def param_groups(self) -> dict[str, list[str]]:
        names = [n for n, _ in self.named_parameters()]
        return {"grid": ["encoder.table"], "net": [n for n in names if n != "encoder.table"]}
