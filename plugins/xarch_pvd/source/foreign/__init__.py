"""Fields of other projects as teachers, wrapped with their own activations, encodings and heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from xarch import UsageError, validated
from xarch_field import RadianceField
from xarch_pvd.source.foreign.factored import nerfstudio_factored, tensorf, torch_ngp_factored
from xarch_pvd.source.foreign.nerfstudio import NerfstudioHash, NerfstudioVanilla
from xarch_pvd.source.foreign.options import SCHEMAS
from xarch_pvd.source.foreign.svox2 import Svox2
from xarch_pvd.source.foreign.world_mlp import world_mlp
from xarch_pvd.source.formats.record import FieldFile

DAMAGED = "the file is damaged; download or write it again"
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
    if record.arch in SCHEMAS:
        said = validated(SCHEMAS[record.arch], record.options, f"options of a {record.arch} field", DAMAGED)
        record = replace(record, options=said.model_dump())
    try:
        field = KINDS[record.arch](record)
        _probe(field)
    except (RuntimeError, ValueError, IndexError) as e:
        # Only the tensors of a foreign field say how wide its layers are; torch finds out whether they fit together.
        raise UsageError(
            f"the tensors of this {record.arch} field do not fit together: {str(e).splitlines()[0][:200]}", DAMAGED
        ) from e
    return field


@torch.no_grad()
def _probe(field: RadianceField) -> None:
    """Query the field at two points, which reads every layer once."""
    x_N3 = field.aabb.mean(dim=0).expand(2, 3)
    d_N3 = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    if field.query(x_N3, d_N3, ("sigma", "rgb"))["rgb"].shape != (2, 3):
        raise ValueError("a colour does not have three values")


__all__ = ["KINDS", "foreign_field"]
