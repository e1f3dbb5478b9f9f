"""Million points a second of exported fields in onnxruntime, one thread: every representation in every graph form.

    python benchmarks/fields/exported.py [--preset paper] [--points 16384]

Weights are random: speed does not depend on them. Sizes are those of the presets. Seconds are CPU seconds of a process
(the median call), so that other work on the machine counts for little; ``wall`` is beside them. The reference is the
hash field in its default form, the usual teacher; ``xarch bench RUN`` measures a run's own student and teacher. Each
graph is compared with torch before it is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from benchmarks import page  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402
from xarch.export.profiles import cpu  # noqa: E402
from xarch.export.run import export_teacher  # noqa: E402
from xarch.export.session import open_session  # noqa: E402
from xarch.hardware import load_average  # noqa: E402
from xarch_field.facts import FieldFacts  # noqa: E402
from xarch_field.student import FieldStudent  # noqa: E402
from xarch_pvd.export.graphs import FieldExport, field_graphs  # noqa: E402
from xarch_pvd.targets.representations import OPTIONS, build_field  # noqa: E402
from xarch_pvd.train import scene  # noqa: E402

FORMS: dict[str, list[dict[str, str]]] = {
    "hash": [{"hash": "loop"}, {"hash": "batched"}],
    "mlp": [{}],
    "vm": [{"grids": "gather"}, {"grids": "grid_sample"}],
    "cp": [{"grids": "gather"}, {"grids": "grid_sample"}],
    "hash+vm": [{}],
    "tensors": [{}],
}
OTHERS = {"mlp": ["npu-mlp"], "vm": ["npu-vm"]}


def main() -> None:
    """Export and time everything, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--points", type=int, default=16_384, help="points of a call")
    parser.add_argument("--calls", type=int, default=15)
    add_options(parser, "fields_exported")
    said = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"points": said.points, "calls": said.calls}
    store = Store(said.out, header("fields_exported", settings, threads=1), said.fresh)
    for arch, preset, forms in wanted(said.preset):
        case = {"target": arch, "preset": preset, **forms}
        if store.find(**case) is None:
            print(store.add({**case, **measured(arch, preset, forms, said.points, said.calls)}), flush=True)
    page.show(store.finish())


def wanted(preset: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Every row: representation, preset, export options."""
    for arch, forms in FORMS.items():
        for chosen in forms:
            yield arch, preset, chosen
        for other in OTHERS.get(arch, ()):
            yield arch, other, forms[0]


def measured(arch: str, preset: str, forms: dict[str, str], points: int, calls: int) -> dict[str, Any]:
    """Figures of one exported ``points`` graph."""
    torch.manual_seed(0)
    options = OPTIONS[arch].model_validate({"preset": preset})
    low, high = ((x, y, z) for x, y, z in scene.BOX)
    grid = torch.rand(64, 64, 64) < 0.2
    field = build_field(arch, options, aabb=scene.BOX, occupancy=grid).eval().requires_grad_(False)
    graphs = field_graphs(
        FieldStudent(field, FieldFacts(arch=arch, aabb=(low, high)), options), cpu, FieldExport(**forms)
    )[:1]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        export_teacher(graphs, cpu, Path(folder) / "out", lambda line: None)
        exported = time.perf_counter() - started
        files = list((Path(folder) / "out").iterdir())
        session = open_session(Path(folder) / "out" / "points.onnx", cpu.provider, threads=1)
        xyz = (2 * np.random.default_rng(0).random((points, 3)) - 1).astype(np.float32)
        given = {"xyz": xyz, "dir": xyz / np.linalg.norm(xyz, axis=-1, keepdims=True)}
        cpu_seconds, wall = [], []
        for _ in range(calls + 2):
            a, b = time.process_time(), time.perf_counter()
            session.run(None, given)
            cpu_seconds.append(time.process_time() - a)
            wall.append(time.perf_counter() - b)
        size = sum(f.stat().st_size for f in files if f.suffix in (".onnx", ".data"))
        nodes = nodes_of(Path(folder) / "out" / "points.onnx")
    rates = sorted(points / seconds / 1e6 for seconds in cpu_seconds[2:])
    return {
        "mpoints_per_cpu_second": round(statistics.median(rates), 4),
        "between": [round(rates[0], 4), round(rates[-1], 4)],
        "mpoints_per_wall_second": round(points / statistics.median(wall[2:]) / 1e6, 4),
        "nodes": nodes,
        "parameters": sum(p.numel() for p in field.parameters()),
        "bytes": size,
        "export_seconds": round(exported, 1),
        "load_average": load_average(),
    }


def nodes_of(path: Path) -> int:
    """Nodes of a graph as it is stored."""
    from xarch.export.check import inspect_onnx

    return int(inspect_onnx(path)["nodes"])


if __name__ == "__main__":
    main()
