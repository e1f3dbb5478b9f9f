"""Reader and writer of torch-ngp and progressive volume distillation (PVD) checkpoints, ``.pth``.

A dict with ``model`` (the state dict), ``epoch``, ``global_step``, ``stats``, ``mean_count`` and ``mean_density``, and
``resolution`` for factored tensors. The architecture is recognised from the names in the state dict:

* ``encoder.embeddings`` and ``encoder.offsets``: ``hash``; options ``levels, features, base, finest, log2_size, sizes``
  (rows of each level), ``hidden``;
* ``nerf_mlp.i``: ``mlp`` in the box ±1, ``torch-ngp-mlp`` in others, because its encoding reads world coordinates;
  options ``frequencies, width, layers, output, skip`` (the layer that reads the encoding again, 0 for none);
* ``sigma_mat.i``: ``vm`` and ``sigma_vec.i`` without it: ``cp``, if the colour net reads spherical harmonics and the
  features; options ``resolution`` (a number, or three), ``density_rank, colour_rank, feature_clip``; torch-ngp's own
  models encode 27 features and the direction by frequencies (2 each, sin and cos interleaved): ``torch-ngp-vm`` and
  ``torch-ngp-cp`` with additional options ``feature_frequencies`` and ``direction_frequencies``;
* ``tensor_volume.0``: ``tensors``; options ``resolution, degree``.

All have ``degree`` where directions are encoded by spherical harmonics (degree² values), and all except ``tensors``
have ``geometry``, the number of features besides the density.

Values missing from these files follow their programs: PVD (14 levels, and everything it adds) clips the raw density to
[-2, 7], and with it the features of ``vm``; torch-ngp clips nothing. xarch writes both clips, the background and the
growth factor to an entry ``xarch`` that the programs ignore. A ``cp`` field is written with torch-ngp's names and the
head of this record, which no other program supports.

The world is that of the file: for Blender-style data torch-ngp permutes the axes to (y, z, x) and scales the cameras;
see ``PosedImages.to_torch_ngp``.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch import UsageError
from xarch_pvd.source.formats import hash_levels, pvd_names
from xarch_pvd.source.formats.occupancy import (
    cascade_count,
    merge_cascades,
    morton,
    pack_bits,
    split_cascades,
    to_morton,
    unpack_bits,
)
from xarch_pvd.source.formats.pickle_file import read_pickle, tensors_of
from xarch_pvd.source.formats.record import FieldFile, chain, need, number, numbered, numbers

CLIP = (-2.0, 7.0)
PVD_LEVELS = 14
DENSE = 20.0
"""Density written to occupied cells: above every threshold that the programs use (at most 10)."""
MAX_SIDE, MAX_BOUND = 512, 32768.0


def is_torch_ngp(loaded: Mapping[str, Any]) -> bool:
    """Return whether a loaded checkpoint has the box and the tensors of one of these programs."""
    model = loaded.get("model", loaded)
    known = ("encoder.embeddings", "nerf_mlp.0.weight", "sigma_mat.0", "sigma_vec.0", "tensor_volume.0")
    return isinstance(model, Mapping) and "aabb_train" in model and any(k in model for k in known)


def read_pvd_pth(path: Path | str, *, allow_pickle: bool = False, growth: float | None = None) -> FieldFile:
    """Read the field of a torch-ngp or PVD checkpoint.

    Args:
        growth: growth factor between levels of a hash table, if the file was trained with an unusual one.

    Raises:
        UsageError: pickles are not allowed, or the file is damaged, is not such a checkpoint, or has inconsistent
            shapes.
    """
    path = Path(path)
    return from_loaded(read_pickle(path, allow_pickle=allow_pickle), path, growth=growth)


def from_loaded(loaded: Mapping[str, Any], path: Path, *, growth: float | None = None) -> FieldFile:
    """Convert a loaded checkpoint to a record."""
    if not is_torch_ngp(loaded):
        raise UsageError(f"{path} is not a torch-ngp checkpoint: it holds {', '.join(map(str, list(loaded)[:8]))}")
    state = tensors_of(loaded.get("model", loaded), path)
    said = loaded.get("xarch")
    notes: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
    where = str(path)
    x0, y0, z0, x1, y1, z1 = need(state, "aabb_train", where, (6,)).tolist()
    box = (x0, y0, z0, x1, y1, z1)
    bound = max(abs(v) for v in box)
    if not 0 < bound < MAX_BOUND:
        raise UsageError(f"{where}: aabb_train is {box}, expected a box around the origin")
    tensors = pvd_names.to_xarch(state)
    if growth is None and notes.get("growth") is not None:
        growth = number(notes, "growth", 0, where)
    base = int(number(notes, "base", hash_levels.BASE, where))
    arch, options = _describe(tensors, state, where, bound, growth, base)
    if "encoder.table" in tensors or "trunk.0.weight" in tensors:
        # These span the cube of the bound; a smaller box only limits where points are sampled.
        box = (-bound, -bound, -bound, bound, bound, bound)
    paper = arch in ("mlp", "torch-ngp-mlp", "vm", "tensors") or options.get("levels") == PVD_LEVELS
    clip = _pair(notes.get("sigma_clip", CLIP if paper else None), f"{where}: sigma_clip")
    if arch == "vm":
        options["feature_clip"] = (
            _pair(notes["feature_clip"], f"{where}: feature_clip") if "feature_clip" in notes else CLIP
        )
    ignored = sorted(k for k in state if k.startswith(("bg_", "encoder_bg")))
    return FieldFile(
        arch=arch,
        options=options,
        tensors=tensors,
        aabb=box,
        sigma_clip=clip,
        occupancy=_occupancy(state, where, bound, box),
        background=_triple(notes.get("background"), f"{where}: background"),
        details={
            "format": "torch-ngp",
            "step": _count(loaded.get("global_step")),
            "cascades": cascade_count(bound),
            # A file written by xarch keeps the world of its images; the programs themselves rotate and scale it.
            "world": "folder" if said is not None else "torch-ngp",
            "ignored": ignored,
        },
    )


def write_pvd_pth(record: FieldFile, path: Path | str, *, grid_side: int = 128) -> None:
    """Write a field so that PVD or torch-ngp can load it.

    Raises:
        UsageError: the architecture or warp is not supported there, or the file cannot be written.
    """
    path = Path(path)
    known = ("hash", "mlp", "vm", "cp", "tensors", "torch-ngp-mlp", "torch-ngp-vm", "torch-ngp-cp")
    if record.arch not in known or record.warp != "aabb":
        raise UsageError(
            f"torch-ngp does not support {record.arch} with warp {record.warp}",
            "convert it to hash, mlp, vm or tensors first",
        )
    bound = record.bound
    state = pvd_names.to_torch_ngp(record.tensors)
    box = torch.tensor(record.aabb, dtype=torch.float32)
    state |= {"aabb_train": box, "aabb_infer": box.clone()}
    if record.arch == "hash":
        if tuple(record.aabb) != (-bound, -bound, -bound, bound, bound, bound):
            raise UsageError(f"torch-ngp's hash tables span a cube around the origin; the box is {record.aabb}")
        state["encoder.offsets"] = torch.tensor(_offsets(record), dtype=torch.int32)
    if record.arch == "mlp" and tuple(record.aabb) != (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0):
        raise UsageError(
            f"the encoding of an mlp reads world coordinates in PVD; the box is {record.aabb}, expected ±1"
        )
    mean = 0.0
    if record.occupancy is not None:
        grids = split_cascades(record.occupancy, record.aabb, bound, grid_side)
        state["density_grid"] = to_morton(grids).float() * DENSE
        state["density_bitfield"] = pack_bits(grids).flatten()
        state["step_counter"] = torch.zeros(16, 2, dtype=torch.int32)
        mean = float(state["density_grid"].mean())
    notes: dict[str, Any] = {}
    for key, value in (
        ("sigma_clip", record.sigma_clip),
        ("feature_clip", record.options.get("feature_clip")),
        ("background", record.background),
        ("growth", _growth(record.options) if record.arch == "hash" else None),
        ("base", record.options.get("base", hash_levels.BASE) if record.arch == "hash" else None),
    ):
        if value is not None or key in ("sigma_clip", "feature_clip"):
            notes[key] = list(value) if isinstance(value, tuple | list) else value
    document: dict[str, Any] = {
        "epoch": 0,
        "global_step": int(record.details.get("step") or 0),
        "stats": {"loss": [], "valid_loss": [], "results": [], "checkpoints": [], "best_result": None},
        "mean_count": 0,
        "mean_density": mean,
        "model": {name: t.detach().to("cpu").contiguous() for name, t in state.items()},
        "xarch": notes,
    }
    if "sigma_lines.0" in record.tensors:
        document["resolution"] = [record.tensors[f"sigma_lines.{2 - axis}"].shape[2] for axis in range(3)]
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(document, partial)
        os.replace(partial, path)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror or e}", "free disk space or choose another folder") from e
    finally:
        partial.unlink(missing_ok=True)


def _describe(
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    where: str,
    bound: float,
    growth: float | None,
    base: int,
) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {}
    if "volume" in tensors:
        volume = need(tensors, "volume", where, (None,) * 4)
        degree = math.isqrt((volume.shape[0] - 1) // 3)
        if volume.shape[0] != 1 + 3 * degree**2 or degree < 1:
            raise UsageError(f"{where}: tensor_volume.0 has {volume.shape[0]} channels, expected 1 + 3 * degree²")
        return "tensors", options | {"resolution": _one(volume.shape[1:]), "degree": degree}
    if "sigma_lines.0" in tensors:
        arch, factored = _factored(tensors, where)
        return arch, options | factored
    if "encoder.table" in tensors:
        offsets = [int(v) for v in need(state, "encoder.offsets", where, (None,)).tolist()]
        table = need(tensors, "encoder.table", where, (offsets[-1] if offsets else 0, None))
        factor, log2_table = hash_levels.growth_of(offsets, bound, where, growth, base)
        arch, width = "hash", (len(offsets) - 1) * table.shape[1]
        options |= {
            "levels": len(offsets) - 1,
            "features": table.shape[1],
            "base": base,
            "finest": _finest(base, factor, len(offsets) - 1),
            "log2_size": log2_table,
            "sizes": [b - a for a, b in itertools.pairwise(offsets)],
        }
    else:
        arch = "mlp" if bound == 1 else "torch-ngp-mlp"
        width, trunk = _trunk(tensors, where)
        options |= trunk
    layers = chain(tensors, "sigma_net", where, width)
    options["hidden"] = layers[0].shape[0]
    return arch, options | _head(tensors, where, layers[-1].shape[0] - 1)


def _trunk(tensors: Mapping[str, Tensor], where: str) -> tuple[int, dict[str, Any]]:
    weights = numbered(tensors, "trunk", ".weight")
    if len(weights) < 2 or any(w.ndim != 2 for w in weights):
        raise UsageError(f"{where}: nerf_mlp has {len(weights)} layers, expected two or more matrices")
    encoded, wide = weights[0].shape[1], weights[0].shape[0]
    if encoded < 3 or (encoded - 3) % 6:
        raise UsageError(f"{where}: nerf_mlp.0 reads {encoded} values, expected 3 + 6 * frequencies")
    skip = 0
    for i, weight in enumerate(weights):
        need(tensors, f"trunk.{i}.bias", where, (weight.shape[0],))
        if i and weight.shape[1] == wide + encoded and not skip:
            skip = i
        elif i and weight.shape[1] != weights[i - 1].shape[0]:
            raise UsageError(
                f"{where}: nerf_mlp.{i} reads {weight.shape[1]} values, but its input has {weights[i - 1].shape[0]}"
            )
    options = {"frequencies": (encoded - 3) // 6, "width": wide, "layers": len(weights), "skip": skip}
    options["output"] = weights[-1].shape[0]
    return weights[-1].shape[0], options


def _factored(tensors: Mapping[str, Tensor], where: str) -> tuple[str, dict[str, Any]]:
    planes = "sigma_planes.0" in tensors
    kinds: dict[str, list[int]] = {}
    # Line m runs along axis 2 - m; plane m spans the other two axes, higher axis first.
    resolution = [need(tensors, f"sigma_lines.{2 - axis}", where, (1, None, None, 1)).shape[2] for axis in range(3)]
    for kind in ("sigma", "color"):
        kinds[kind] = []
        for m, (a, b, c) in enumerate(((0, 1, 2), (0, 2, 1), (1, 2, 0))):
            rank = need(tensors, f"{kind}_lines.{m}", where, (1, None, resolution[c], 1)).shape[1]
            if planes:
                need(tensors, f"{kind}_planes.{m}", where, (1, rank, resolution[b], resolution[a]))
            kinds[kind].append(rank)
        if not planes and len(set(kinds[kind])) != 1:
            raise UsageError(f"{where}: {kind}_vec have ranks {kinds[kind]}, expected the same on every axis")
    columns = sum(kinds["color"]) if planes else kinds["color"][0]
    features = need(tensors, "basis.weight", where, (None, columns)).shape[0]
    options: dict[str, Any] = {
        "resolution": _one(resolution),
        "density_rank": _one(kinds["sigma"]),
        "colour_rank": _one(kinds["color"]),
    }
    arch = "vm" if planes else "cp"
    width = chain(tensors, "color_net", where)[0].shape[1]
    # With 27 features and the direction encoded by 2 frequencies each, the net reads 27 * 5 + 3 * 5 = 150 values.
    if width == features * 5 + 15:
        extra = {"feature_frequencies": 2, "direction_frequencies": 2, "geometry": features}
        return f"torch-ngp-{arch}", options | extra
    return arch, options | _head(tensors, where, features)


def _head(tensors: Mapping[str, Tensor], where: str, geometry: int) -> dict[str, Any]:
    layers = chain(tensors, "color_net", where)
    basis = layers[0].shape[1] - geometry
    degree = math.isqrt(max(basis, 0))
    if basis < 1 or degree**2 != basis or layers[-1].shape[0] != 3:
        raise UsageError(
            f"{where}: color_net reads {layers[0].shape[1]} and returns {layers[-1].shape[0]} values, expected "
            f"degree² + {geometry} and 3"
        )
    return {"degree": degree, "geometry": geometry}


def _occupancy(state: Mapping[str, Tensor], where: str, bound: float, box: tuple[float, ...]) -> Tensor | None:
    if "density_grid" not in state:
        return None
    grid = need(state, "density_grid", where, (None, None))
    cascades, side = grid.shape[0], round(grid.shape[1] ** (1 / 3))
    fits = side**3 == grid.shape[1] and side & (side - 1) == 0 and 2 <= side <= MAX_SIDE
    if not fits or cascades != cascade_count(bound):
        raise UsageError(f"{where}: density_grid is {tuple(grid.shape)}, expected [{cascade_count(bound)}, side³]")
    field = state.get("density_bitfield")
    if field is not None and (field.dtype != torch.uint8 or field.numel() * 8 != grid.numel()):
        raise UsageError(f"{where}: density_bitfield is {field.dtype} {tuple(field.shape)}, expected one bit per cell")
    if field is None or not bool(field.any()):
        positive = grid.clamp(min=0)
        occupied = positive > min(float(positive.mean()), 10.0)
        if not bool(occupied.any()):
            return None
        field = pack_bits(occupied[:, morton(side)])
    return merge_cascades(unpack_bits(field.flatten(), cascades, side), bound, box)


def _offsets(record: FieldFile) -> list[int]:
    sizes = record.options.get("sizes")
    if sizes:
        return [0, *itertools.accumulate(int(s) for s in sizes)]
    said = record.options
    return hash_levels.offsets(said["levels"], _growth(said), said["log2_size"], said["base"])


def _growth(options: Mapping[str, Any]) -> float:
    return 2 ** (math.log2(options["finest"] / options["base"]) / max(options["levels"] - 1, 1))


def _finest(base: int, growth: float, levels: int) -> float:
    """Return an integer if the growth factor came from one: rounding must not move a level across a boundary."""
    finest = base * growth ** (levels - 1)
    return float(round(finest)) if abs(finest - round(finest)) < 1e-6 * finest else finest


def _one(values: Sequence[int]) -> int | list[int]:
    """Return a single number if all are equal."""
    return int(values[0]) if len(set(values)) == 1 else [int(v) for v in values]


def _pair(value: Any, where: str) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = numbers(value, 2, where)
    return low, high


def _triple(value: Any, where: str) -> tuple[float, float, float] | None:
    if value is None:
        return None
    red, green, blue = numbers(value, 3, where)
    return red, green, blue


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else None
