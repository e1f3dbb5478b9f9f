"""Fields of other projects as teachers, wrapped with their own activations, encodings and heads."""

from __future__ import annotations

from collections.abc import Callable

from xarch import UsageError
from xarch_field import RadianceField
from xarch_pvd.source.foreign.factored import nerfstudio_factored, tensorf, torch_ngp_factored
from xarch_pvd.source.foreign.nerfstudio import NerfstudioHash, NerfstudioVanilla
from xarch_pvd.source.foreign.svox2 import Svox2
from xarch_pvd.source.foreign.world_mlp import world_mlp
from xarch_pvd.source.formats.record import FieldFile

KINDS: dict[str, Callable[[FieldFile], RadianceField]] = {
    "tensorf-vm": tensorf,
    "tensorf-cp": tensorf,
    "torch-ngp-vm": torch_ngp_factored,
    "torch-ngp-cp": torch_ngp_factored,
    "torch-ngp-mlp": world_mlp,
    "nerfstudio-hash": NerfstudioHash,
    "nerfstudio-vanilla": NerfstudioVanilla,
    "nerfstudio-vm": nerfstudio_factored,
    "nerfstudio-cp": nerfstudio_factored,
    "svox2": Svox2,
}


def foreign_field(record: FieldFile) -> RadianceField:
    """Build the module of a record of a foreign kind.

    Raises:
        UsageError: the kind is unknown, the scene is in normalised device coordinates (the file lacks the camera), or
            tensors do not fit.
    """
    if record.arch not in KINDS:
        raise UsageError(f"unknown field kind {record.arch!r}", f"kinds: {', '.join(KINDS)}")
    if record.warp == "ndc":
        raise UsageError(
            f"this {record.arch} field is in normalised device coordinates, but the file does not contain their camera",
            "train it in world coordinates, or use a scene that is not forward-facing",
        )
    return KINDS[record.arch](record)


__all__ = ["KINDS", "foreign_field"]
