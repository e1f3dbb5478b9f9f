"""Every kind of field into every kind of file and back (acceptance A13).

    python benchmarks/fields/round_trips.py

Fields are trained from pictures of the procedural scene and written as ``xarch pvd save`` writes them.
``psnr_read_again`` compares renders of the file, read again, with what was written: at least 60 dB for checkpoints,
45 dB for voxels in half precision. What a format has no form for is baked into voxels first; ``psnr_baked`` is what
baking costs. svox2 has other activations: its first writing is a conversion (``psnr_read_again`` says how good), its
second (``svox2 again``) must keep every number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from benchmarks.fields.pictures import Pictures, procedural  # noqa: E402
from benchmarks.fields.rows import opened, store  # noqa: E402
from xarch_pvd.export.saving import SavingOptions, save  # noqa: E402
from xarch_pvd.source.field_file import save_field_file  # noqa: E402
from xarch_pvd.source.opened import open_field  # noqa: E402
from xarch_pvd.targets.representations import OPTIONS, build_field  # noqa: E402
from xarch_pvd.targets.representations.records import to_file  # noqa: E402
from xarch_pvd.train import scene  # noqa: E402
from xarch_pvd.train.training import Pixels, TrainingOptions, train_field  # noqa: E402

RESULTS = Path(__file__).parent.parent / "results" / "fields_round_trips.json"
FILES: dict[str, tuple[str, str, dict[str, Any], float | None]] = {
    "torch-ngp": ("torch-ngp", ".pth", {}, 60.0),
    "voxels f16": ("voxels", ".npz", {}, 45.0),
    "voxels f16, linear": ("voxels", ".npz", {"linear": True}, 45.0),
    "voxels f32": ("voxels", ".npz", {"half": False}, 60.0),
    "svox2": ("svox2", ".npz", {}, None),
    "svox2 again": ("svox2", ".npz", {}, 45.0),
    "xarch": ("xarch", ".safetensors", {}, 60.0),
}
"""Name -> format, ending, options, least dB read again."""


def main() -> None:
    """Train, write, read, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="picture side in pixels")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each field")
    parser.add_argument("--resolution", type=int, default=96, help="samples an axis of what is baked")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("fields-round-trips"), help="folder for the files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = opened(arguments.out, {"seeds": {}})
    data["settings"] = {k: getattr(arguments, k) for k in ("size", "steps", "resolution")}
    pictures = procedural(arguments.size)
    for seed in arguments.seeds:
        kinds = data["seeds"].setdefault(str(seed), {})
        for arch in OPTIONS:
            file = arguments.work / f"{arch}-{seed}.safetensors"
            rows = kinds.setdefault(arch, {})
            if set(FILES) <= set(rows):
                continue
            if not file.is_file():
                train(arch, file, seed, arguments.steps, pictures)
            for name in FILES:
                rows[name] = measure(file, name, arguments.resolution)
                print(seed, arch, name, rows[name], flush=True)
            store(arguments.out, data)
    data["limits"] = {name: least for name, (*_, least) in FILES.items() if least is not None}
    data["passed"] = all(
        rows[name]["psnr_read_again"] >= least
        for kinds in data["seeds"].values()
        for rows in kinds.values()
        for name, least in data["limits"].items()
    )
    store(arguments.out, data)
    show(data)


def train(arch: str, file: Path, seed: int, steps: int, pictures: Pictures) -> None:
    """A field of the scene."""
    torch.manual_seed(seed)
    field = build_field(arch, OPTIONS[arch].model_validate({}), aabb=scene.BOX)
    options = TrainingOptions(steps=steps, seed=seed)
    train_field(field, Pixels.of(pictures.cameras, pictures.picture), options)
    save_field_file(file, to_file(field), pictures.views, {"seed": seed})


def measure(file: Path, name: str, resolution: int) -> dict[str, Any]:
    """Write one file; voxels and svox2 keep the samples of a voxel field, others are baked."""
    kind, ending, changes, _ = FILES[name]
    out = file.with_name(f"{file.stem}-{name.replace(' ', '-')}{ending}")
    source = file.with_name(f"{file.stem}-svox2.npz") if name == "svox2 again" else file
    opened = open_field(str(source))
    bakes = kind in ("voxels", "svox2") and opened.record.arch not in ("tensors", "svox2")
    # What torch-ngp has no form for (tables and planes together) is baked too.
    bakes |= kind == "torch-ngp" and opened.record.arch == "hash+vm"
    options = SavingOptions(resolution=resolution if bakes else None, **changes)
    started = time.process_time()
    found = save(opened, out, kind, options)
    return {**found, "cpu_seconds": round(time.process_time() - started, 1)}


def show(data: dict) -> None:
    """Lowest value over the seeds; what baking cost on the average."""
    table = Table("field", "baked", *FILES, title="PSNR of the file read again, dB: the lowest over seeds")
    seeds = list(data["seeds"].values())
    for arch in OPTIONS:
        cost = [rows[arch][n]["psnr_baked"] for rows in seeds for n in FILES if "psnr_baked" in rows[arch][n]]
        cells = [f"{min(rows[arch][n]['psnr_read_again'] for rows in seeds):.1f}" for n in FILES]
        table.add_row(arch, f"{statistics.mean(cost):.1f}" if cost else "", *cells)
    Console().print(table)
    Console().print(f"A13 {'passed' if data['passed'] else 'failed'}: {data['limits']}")


if __name__ == "__main__":
    main()
