"""Settings of foreign fields as their files store them, typed: a file can be edited, or written by anybody."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from xarch import Options, Size

Frequencies = Annotated[int, Field(ge=0, le=32)]
Exponent = Annotated[float, Field(ge=-32, le=32)]
PerAxis = tuple[Size, Size, Size]


class ForeignOptions(Options):
    """Base: a format may store more about a field than its module reads."""

    model_config = ConfigDict(extra="ignore")


class TensoRFOptions(ForeignOptions):
    """Of ``tensorf-vm`` and ``tensorf-cp``."""

    shading: Literal["MLP_Fea", "MLP_PE", "MLP", "SH", "RGB"]
    activation: Literal["softplus", "relu"]
    distance_scale: float = Field(gt=0, le=1e6)
    density_shift: float = Field(ge=-1e6, le=1e6)
    pos_pe: Frequencies = 6
    view_pe: Frequencies = 6
    fea_pe: Frequencies = 6


class TorchNGPOptions(ForeignOptions):
    """Of ``torch-ngp-vm`` and ``torch-ngp-cp``."""

    feature_frequencies: Frequencies
    direction_frequencies: Frequencies


class NerfstudioFactoredOptions(TorchNGPOptions):
    """Of ``nerfstudio-vm`` and ``nerfstudio-cp``."""

    feature_exponent: Exponent
    direction_exponent: Exponent


class NerfstudioHashOptions(ForeignOptions):
    """Of ``nerfstudio-hash``."""

    levels: int = Field(ge=1, le=32)
    features: int = Field(ge=1, le=64)
    log2_table: int = Field(ge=1, le=28)
    base_resolution: int = Field(ge=1, le=1 << 20)
    finest_resolution: float = Field(ge=1, le=1 << 20)
    density_scale: float = Field(gt=0, le=1e6)


class NerfstudioVanillaOptions(ForeignOptions):
    """Of ``nerfstudio-vanilla``."""

    position_frequencies: Frequencies
    position_exponent: Exponent
    direction_frequencies: Frequencies
    direction_exponent: Exponent
    skip: int | None = Field(None, ge=1, le=64)


class Svox2Options(ForeignOptions):
    """Of ``svox2``."""

    degree: int = Field(ge=1, le=4)
    resolution: PerAxis | None = None
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius: tuple[float, float, float] = (1.0, 1.0, 1.0)


SCHEMAS: dict[str, type[ForeignOptions]] = {
    "tensorf-vm": TensoRFOptions,
    "tensorf-cp": TensoRFOptions,
    "torch-ngp-vm": TorchNGPOptions,
    "torch-ngp-cp": TorchNGPOptions,
    "nerfstudio-hash": NerfstudioHashOptions,
    "nerfstudio-vanilla": NerfstudioVanillaOptions,
    "nerfstudio-vm": NerfstudioFactoredOptions,
    "nerfstudio-cp": NerfstudioFactoredOptions,
    "svox2": Svox2Options,
}
