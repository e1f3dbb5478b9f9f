"""Reader of nerfstudio checkpoints, ``step-*.ckpt``, trained with its torch backend.

A dict of ``step``, ``pipeline`` (the state dict) and optimiser states. The field lies under ``_model.field.`` (vanilla
NeRF: ``_model.field_fine.``), and tensors keep their names without that prefix:

* ``nerfstudio-hash`` (instant-ngp, nerfacto): ``mlp_base.model.0.hash_table`` [L*2^T, F], every level hashed,
  resolution floor(16 * growth^l), corners floor and ceil of u*R; ``mlp_base.model.1.layers.i``, ``mlp_head.layers.i``
  with biases. Options ``levels, features, log2_table, base_resolution, finest_resolution, density_scale``
  (sigma = density_scale * exp), ``geometry``. Directions enter the harmonics (degree 4) as (d+1)/2, not mapped back.
  ``appearance`` [32], present if the model had an embedding, is the vector concatenated last into ``mlp_head``.
* ``nerfstudio-vanilla``: ``mlp_base.layers.i`` (8 layers, the encoding concatenated in front of layer ``skip``),
  ``mlp_head.layers.i``, ``field_output_density.net``, ``field_heads.0.net``; softplus density, sigmoid colour, ReLU
  after every layer of both stacks. Options ``position_frequencies, position_exponent, direction_frequencies,
  direction_exponent, skip``: encodings are [sin(all), cos(all), x] of 2 pi 2^e x, e evenly spaced from 0 to the
  exponent, grouped by coordinate.
* ``nerfstudio-vm`` and ``nerfstudio-cp`` (tensorf): ``density_encoding.plane_coef`` [3,R,N,N], ``.line_coef``
  [3,R,N,1], the same under ``color_encoding``, ``B.weight``, ``mlp_head.layers.i``, ``field_output_rgb.net``. Density
  is relu of the sum. Options ``resolution, app_dim, feature_frequencies, feature_exponent, direction_frequencies,
  direction_exponent``; encodings as above without x; the head reads (features, direction, both encodings).

``config.yml`` beside the checkpoint is YAML of Python objects, read as plain data for the few numbers missing from the
state dict. The world is nerfstudio's; ``details["dataparser"]`` holds the transform and scale that map to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import UsageError, read_json, typed
from xarch_pvd.source.formats.occupancy import cubic
from xarch_pvd.source.formats.pickle_file import tensors_of
from xarch_pvd.source.formats.plain_yaml import read_plain_yaml
from xarch_pvd.source.formats.record import Coordinate, FieldFile, chain, need, number

UNIT = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
VANILLA_BOX = (-1.5, -1.5, -1.5, 1.5, 1.5, 1.5)
"""The box of nerfstudio's Blender parser; vanilla NeRF stores none."""
Row = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
COLOURS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}


@dataclass(frozen=True)
class Dataparser:
    """dataparser_transforms.json: how the cameras of the images came to stand where they did."""

    transform: tuple[Row, Row, Row]
    scale: Annotated[float, Field(gt=0, le=1e9)]


def is_nerfstudio(loaded: Mapping[str, Any]) -> bool:
    """Return whether a loaded checkpoint is from nerfstudio."""
    pipeline = loaded.get("pipeline")
    return isinstance(pipeline, Mapping) and any(str(k).startswith("_model.") for k in pipeline)


def last_checkpoint(path: Path) -> Path:
    """Return the checkpoint with the highest step in a folder; a file is returned unchanged.

    Raises:
        UsageError: the folder has no checkpoint.
    """
    if not path.is_dir():
        return path
    found = sorted([*path.glob("step-*.ckpt"), *path.glob("nerfstudio_models/step-*.ckpt")], key=lambda p: p.name)
    if not found:
        raise UsageError(f"{path} contains no step-*.ckpt, neither directly nor in nerfstudio_models/")
    return found[-1]


def from_loaded(loaded: Mapping[str, Any], path: Path) -> FieldFile:
    """Convert a loaded checkpoint to a record."""
    if not is_nerfstudio(loaded):
        raise UsageError(f"{path} is not a nerfstudio checkpoint: it holds {', '.join(map(str, list(loaded)[:8]))}")
    pipeline = {str(k).removeprefix("_model."): v for k, v in loaded["pipeline"].items()}
    flat = sorted(k for k in pipeline if k.endswith(("tcnn_encoding.params", "mlp_base.model.params", "mlp.params")))
    if any(k.startswith(("field.", "field_fine.")) for k in flat):
        raise UsageError(
            f"{path} was trained with tiny-cuda-nn: {flat[0]} is one flat vector whose layout depends on its version",
            "train or re-save it with the torch backend (pipeline.model.implementation=torch)",
        )
    said = _config(path)
    model = said.get("pipeline", {}).get("model", {}) if isinstance(said.get("pipeline"), Mapping) else {}
    model = model if isinstance(model, Mapping) else {}
    details: dict[str, Any] = {
        "format": "nerfstudio",
        "step": loaded.get("step") if isinstance(loaded.get("step"), int) else None,
        "config": bool(said),
        "dataparser": _dataparser(path),
    }
    background = COLOURS.get(str(model.get("background_color")))
    for prefix, read in (("field.", _hash), ("field_fine.", _vanilla), ("field.", _factored)):
        tensors = tensors_of(pipeline, path, prefix)
        if (found := read(tensors, pipeline, model, str(path))) is not None:
            return FieldFile(background=background, details=details, **found)
    raise UsageError(
        f"{path} is not an instant-ngp, nerfacto, vanilla NeRF or tensorf model; it has "
        f"{', '.join(sorted({k.split('.')[0] for k in pipeline})[:8])}"
    )


def _hash(
    tensors: dict[str, Tensor], pipeline: Mapping[str, Any], model: Mapping[str, Any], where: str
) -> dict[str, Any] | None:
    tables = [name for name in tensors if name.endswith("hash_table") and name.startswith("mlp_base")]
    if not tables:
        return None
    # Older versions have both parts directly under mlp_base.
    if tables[0] != "mlp_base.model.0.hash_table":
        old = tables[0].removesuffix("0.hash_table")
        tensors = {n.replace(old, "mlp_base.model.", 1) if n.startswith(old) else n: t for n, t in tensors.items()}
    table = need(tensors, "mlp_base.model.0.hash_table", where, (None, None))
    levels = _number(tensors, "num_levels", 16, where)
    log2_table = _number(tensors, "log2_hashmap_size", round(math.log2(max(1, table.shape[0] // levels))), where)
    if table.shape[0] != levels << log2_table:
        raise UsageError(f"{where}: hash_table has {table.shape[0]} rows, expected {levels} * 2^{log2_table}")
    base = chain(tensors, "mlp_base.model.1.layers", where, levels * table.shape[1])
    geometry = base[-1].shape[0] - 1
    head = chain(tensors, "mlp_head.layers", where)
    extra = head[0].shape[1] - 16 - geometry
    kept = {n: t for n, t in tensors.items() if n.startswith(("mlp_base.model.", "mlp_head.layers."))}
    if extra > 0:
        embedding = tensors.get("embedding_appearance.embedding.weight")
        averaged = bool(model.get("use_average_appearance_embedding", "proposal_networks" in _roots(pipeline)))
        zeros = torch.zeros(extra)
        kept["appearance"] = embedding.mean(dim=0) if averaged and embedding is not None else zeros
        if kept["appearance"].shape != (extra,):
            raise UsageError(
                f"{where}: mlp_head reads {extra} appearance values, but the embedding has a different width"
            )
    elif extra < 0:
        raise UsageError(f"{where}: mlp_head reads {head[0].shape[1]} values, expected at least {16 + geometry}")
    contracted = not bool(model.get("disable_scene_contraction", False))
    box = UNIT if contracted else _box(tensors.get("aabb"), where)
    return {
        "arch": "nerfstudio-hash",
        "options": {
            "levels": levels,
            "features": table.shape[1],
            "log2_table": log2_table,
            "base_resolution": int(number(model, "base_res", 16, where)),
            "finest_resolution": _number(tensors, "max_res", 2048, where),
            "density_scale": number(model, "average_init_density", 1.0, where),
            "geometry": geometry,
        },
        "tensors": kept,
        "aabb": box,
        "warp": "contract_inf" if contracted else "aabb",
        "occupancy": None if contracted else _occupancy(pipeline, box),
    }


def _vanilla(
    tensors: dict[str, Tensor], pipeline: Mapping[str, Any], model: Mapping[str, Any], where: str
) -> dict[str, Any] | None:
    if "field_output_density.net.weight" not in tensors:
        return None
    first = need(tensors, "mlp_base.layers.0.weight", where, (None, None))
    wide, encoded = first.shape
    layers = sorted(int(n.split(".")[2]) for n in tensors if n.startswith("mlp_base.layers.") and n.endswith(".weight"))
    skips = [i for i in layers if i and need(tensors, f"mlp_base.layers.{i}.weight", where).shape[1] == wide + encoded]
    head = need(tensors, "mlp_head.layers.0.weight", where, (None, None))
    need(tensors, "field_heads.0.net.weight", where, (3, None))
    position, direction = (encoded - 3) // 6, (head.shape[1] - wide - 3) // 6
    if len(skips) > 1 or 3 + 6 * position != encoded or wide + 3 + 6 * direction != head.shape[1]:
        raise UsageError(f"{where}: the layers read {encoded} and {head.shape[1]} values, expected 3 + 6 * frequencies")
    return {
        "arch": "nerfstudio-vanilla",
        "options": {
            "position_frequencies": position,
            "position_exponent": 8.0,
            "direction_frequencies": direction,
            "direction_exponent": 4.0,
            "skip": skips[0] if skips else None,
        },
        "tensors": tensors,
        "aabb": VANILLA_BOX,
    }


def _factored(
    tensors: dict[str, Tensor], pipeline: Mapping[str, Any], model: Mapping[str, Any], where: str
) -> dict[str, Any] | None:
    if "density_encoding.line_coef" not in tensors:
        return None
    planes = "density_encoding.plane_coef" in tensors
    side = need(tensors, "density_encoding.line_coef", where, (3, None, None, 1)).shape[2]
    columns = 0
    for kind in ("density", "color"):
        rank = need(tensors, f"{kind}_encoding.line_coef", where, (3, None, side, 1)).shape[1]
        columns = 3 * rank if planes else rank
        if planes:
            need(tensors, f"{kind}_encoding.plane_coef", where, (3, rank, side, side))
    app_dim = need(tensors, "B.weight", where, (None, columns)).shape[0]
    chain(tensors, "mlp_head.layers", where, app_dim * 5 + 15)
    need(tensors, "field_output_rgb.net.weight", where, (3, None))
    return {
        "arch": "nerfstudio-vm" if planes else "nerfstudio-cp",
        "options": {
            "resolution": side,
            "app_dim": app_dim,
            "feature_frequencies": 2,
            "feature_exponent": 2.0,
            "direction_frequencies": 2,
            "direction_exponent": 2.0,
        },
        "tensors": {n: t for n, t in tensors.items() if n != "aabb"},
        "aabb": _box(tensors.get("aabb"), where),
    }


def _occupancy(pipeline: Mapping[str, Any], box: tuple[float, ...]) -> Tensor | None:
    """Return the finest level of nerfacc's grid, which spans the box itself without contraction."""
    grid = pipeline.get("occupancy_grid.binaries")
    if not isinstance(grid, Tensor) or grid.ndim != 4 or grid.numel() > 1 << 30 or not bool(grid[0].any()):
        return None
    return cubic(grid[0].to(torch.bool).clone())


def _roots(pipeline: Mapping[str, Any]) -> set[str]:
    return {name.split(".")[0] for name in pipeline}


def _number(tensors: Mapping[str, Tensor], name: str, usual: int, where: str) -> int:
    value = tensors.get(name)
    if value is None:
        return usual
    if value.numel() != 1 or not 1 <= int(value) <= 1 << 20:
        raise UsageError(f"{where}: {name} is {value.flatten()[:4].tolist()}, expected one positive number")
    return int(value)


def _box(value: Any, where: str) -> tuple[float, float, float, float, float, float]:
    if not isinstance(value, Tensor) or value.numel() != 6:
        raise UsageError(f"{where} has no box of six numbers (field.aabb)")
    x0, y0, z0, x1, y1, z1 = value.float().flatten().tolist()
    return (x0, y0, z0, x1, y1, z1)


def _config(path: Path) -> dict[str, Any]:
    for folder in (path.parent, path.parent.parent):
        if (folder / "config.yml").is_file():
            return read_plain_yaml(folder / "config.yml")
    return {}


def _dataparser(path: Path) -> dict[str, Any] | None:
    for folder in (path.parent, path.parent.parent):
        file = folder / "dataparser_transforms.json"
        if file.is_file():
            said = typed(Dataparser, read_json(file, max_bytes=1 << 20), str(file))
            return {"transform": [list(row) for row in said.transform], "scale": said.scale}
    return None
