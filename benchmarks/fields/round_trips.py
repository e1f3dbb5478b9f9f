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
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from benchmarks import page  # noqa: E402
from benchmarks.fields.pictures import Pictures, procedural  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402
from xarch_pvd.export.saving import SavingOptions, save  # noqa: E402
from xarch_pvd.source.field_file import save_field_file  # noqa: E402
from xarch_pvd.source.reference import open_field  # noqa: E402
from xarch_pvd.targets.representations import OPTIONS, build_field  # noqa: E402
from xarch_pvd.targets.representations.records import to_file  # noqa: E402
from xarch_pvd.train import scene  # noqa: E402
from xarch_pvd.train.training import Pixels, TrainingOptions, train_field  # noqa: E402

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
    add_options(parser, "fields_round_trips")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {k: getattr(arguments, k) for k in ("size", "steps", "resolution")}
    store = Store(arguments.out, header("fields_round_trips", settings, threads=1), arguments.fresh)
    store.note(limits={name: least for name, (*_, least) in FILES.items() if least is not None})
    work = arguments.work / store.key
    work.mkdir(parents=True, exist_ok=True)
    pictures = procedural(arguments.size)
    for seed, arch in itertools.product(arguments.seeds, OPTIONS):
        file = work / f"{arch}-{seed}.safetensors"
        for name in FILES:
            case = {"seed": seed, "field": arch, "file": name}
            if store.find(**case) is None:
                if not file.is_file():
                    train(arch, file, seed, arguments.steps, pictures)
                print(store.add({**case, **measure(file, name, arguments.resolution)}), flush=True)
    page.show(store.finish())


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


if __name__ == "__main__":
    main()
