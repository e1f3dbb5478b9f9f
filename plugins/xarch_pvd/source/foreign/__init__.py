"""Fields of other projects as teachers: their own activations, encodings and heads, wrapped and never copied."""

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
    """The module of a record of another project's own kind.

    Raises:
        UsageError: an unknown kind, a scene in normalised device coordinates (its camera is not in the file), or
            tensors that do not fit.
    """
    if record.arch not in KINDS:
        raise UsageError(f"no field of kind {record.arch!r} is known", f"kinds: {', '.join(KINDS)}")
    if record.warp == "ndc":
        raise UsageError(
            f"this {record.arch} field lives in normalised device coordinates, whose camera is not in the file",
            "train it in world coordinates, or convert a scene that is not forward-facing",
        )
    return KINDS[record.arch](record)


__all__ = ["KINDS", "foreign_field"]
