"""MLP on a sinusoidal encoding (NeRF, arXiv 2003.08934), with the feature head of the other fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xarch.kernels import octave_waves
from xarch_field import FEATURES, FeatureField, PlainMLP, named_tensors
from xarch_pvd.targets.representations.presets import Preset

HIDDEN = 64
"""Hidden width of ``sigma_net``, equal to a hash field's so that the network can be inherited."""


class MLPOptions(Preset):
    """Options of ``mlp``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"layers": 4, "width": 128, "frequencies": 7, "output": 16, "skip": 0},
        "paper": {"layers": 8, "width": 256, "frequencies": 10, "output": 28, "skip": 4},
        "npu-mlp": {"layers": 6, "width": 128, "frequencies": 8, "output": 16, "skip": 2, "skip_by": "add"},
    }
    layers: int = Field(4, ge=2, le=16)
    width: int = Field(128, ge=8, le=1 << 16)
    frequencies: int = Field(7, ge=1, le=16, description="octaves of the encoding")
    output: int = Field(
        16, ge=1, le=1 << 16, description="width of the input of sigma_net (28 to match a `paper` hash field)"
    )
    skip: int = Field(0, ge=0, le=16, description="layer that reads the encoding again; 0: none")
    skip_by: Literal["concat", "add"] = Field(
        "concat",
        description="`add`: the skip input goes through its own layer and is added, without Concat in the graph",
    )


class MLPField(FeatureField):
    """Field made of encoding, trunk and ``sigma_net``."""

    arch = "mlp"

    def __init__(self, options: MLPOptions, **common: Any) -> None:
        super().__init__(**common)
        self.frequencies = options.frequencies
        self.skip, added = options.skip, options.skip_by == "add"
        encoded = 3 * (1 + 2 * options.frequencies)
        layers = []
        width = encoded
        for i in range(options.layers):
            out = options.output if i == options.layers - 1 else options.width
            enters = self.skip and i == self.skip and not added
            layers.append(nn.Linear(width + (encoded if enters else 0), out))
            width = out
        self.trunk = nn.ModuleList(layers)
        enters = added and 0 < self.skip < options.layers
        self.entry = nn.Linear(encoded, layers[self.skip].out_features, bias=False) if enters else None
        self.sigma_net = PlainMLP((options.output, HIDDEN, FEATURES))

    def features(self, u_N3: Tensor) -> Tensor:
        return self.features_of(self.encode(u_N3))

    def features_of(self, encoded_NE: Tensor) -> Tensor:
        """Return feature F [N, 16] of encoded points."""
        x = encoded_NE
        for i, layer in enumerate(self.trunk):
            enters = self.skip > 0 and i == self.skip
            x = layer(torch.cat((encoded_NE, x), dim=-1) if enters and self.entry is None else x)
            x = x + self.entry(encoded_NE) if enters and self.entry is not None else x
            x = F.relu_(x) if i < len(self.trunk) - 1 else x
        return self.sigma_net(x)

    def encode(self, u_N3: Tensor) -> Tensor:
        """Return [x, sin x, cos x, sin 2x, cos 2x, ...] with x in [-1, 1], ordered by octave."""
        x_N3 = 2 * u_N3 - 1
        waves = torch.cat(octave_waves(x_N3, self.frequencies), dim=-1)
        return torch.cat((x_N3, waves.flatten(1)), dim=-1)

    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        return {
            "trunk": {**named_tensors(self.trunk), **({} if self.entry is None else _prefixed("entry", self.entry))},
            "sigma_net": named_tensors(self.sigma_net),
            "color_net": named_tensors(self.color_net),
        }

    def param_groups(self) -> dict[str, list[str]]:
        return {"grid": [], "net": [n for n, _ in self.named_parameters()]}


def _prefixed(name: str, layer: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in named_tensors(layer).items()}
