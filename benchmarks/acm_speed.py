"""Exported adaptive models against their dense teacher in onnxruntime, and one module against its dense form.

    python benchmarks/acm_speed.py
    python benchmarks/acm_speed.py --parts modules --repeats 20

`models`: a ViT-S for 224 pixels with random weights, eight pictures, MLPs and projections or MLPs alone, gates by
chance shifted to a budget. `modules`: an MLP of a ViT on as many tokens. All graphs of a comparison take turns; one
thread; CPU milliseconds are the least of all turns. `executed` counts gates. An interrupted measurement resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

import xarch
from benchmarks import page
from benchmarks.store import Store, add_options, header
from xarch import Batch, ExportGraph, Replaceable, open_session, save_weights
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu
from xarch_acm.cut import DynamicModule, StaticModule
from xarch_acm.export import acm_graphs
from xarch_acm.learners import adaptive
from xarch_acm.module import Point
from xarch_acm.options import AcmExport, AcmOptions
from xarch_acm.student import AcmStudent
from xarch_acm.tables import executed, shift_for
from xarch_acm.target import AcmTarget

MODEL, SIZE, PICTURES = "vit_small_patch16_224", 224, 8
KINDS = {"MLPs and projections": ["mlp", "qkv", "o"], "MLPs": ["mlp"]}
BUDGETS = (0.25, 0.5, 0.75)
WIDTHS, TOKENS = (384, 768), 1576
REPEATS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["modules", "models"], default=["modules", "models"])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    add_options(parser, "acm_speed")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = {"model": MODEL, "pictures": PICTURES, "tokens": TOKENS, "repeats": chosen.repeats}
    store = Store(chosen.out, header("acm_speed", settings, threads=1), chosen.fresh)
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS if "modules" in chosen.parts else ():
            if store.find(part="module", width=width) is None:
                said = {"part": "module", "width": width}
                compare(store, modules(width), Path(folder), chosen.repeats, said)
        for name, kinds in KINDS.items() if "models" in chosen.parts else ():
            if store.find(part="model", modules=name) is None:
                said = {"part": "model", "modules": name}
                compare(store, models(kinds, Path(folder)), Path(folder), chosen.repeats, said)
    page.show(store.finish())


def compare(
    store: Store,
    graphs: Mapping[str, tuple[ExportGraph, float]],
    folder: Path,
    repeats: int,
    said: Mapping[str, object],
) -> None:
    """Measure graphs in turns and add a point for each.

    Args:
        graphs: name -> a graph, and the share of the learners' multiply-adds that it takes; the first is the rival.
        said: what all points say.
    """
    feeds, sessions = {}, {}
    for number, (name, (graph, _)) in enumerate(graphs.items()):
        path = folder / f"{number}.onnx"
        ir.save(to_onnx(graph, cpu), path)
        sessions[name] = open_session(path, cpu.provider, threads=1)
        feeds[name] = {key: value.numpy() for key, value in graph.inputs.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(repeats + 1):
        for name, session in sessions.items():
            begin = time.process_time()
            session.run(None, feeds[name])
            if turn:
                times[name].append(time.process_time() - begin)
    rival = min(times[next(iter(graphs))])
    for name, (_, share) in graphs.items():
        least = min(times[name])
        middle = float(np.median(times[name]))
        figures = {"cpu_ms": 1e3 * least, "median_cpu_ms": 1e3 * middle, "executed": share, "of_dense": least / rival}
        point = {**said, "form": name, **{k: round(v, 4) for k, v in figures.items()}}
        print(store.add(point), file=sys.stderr)


class Mlp(nn.Module):
    """The MLP of a ViT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.fc2(self.act(self.fc1(x)))
        return made


class Only(nn.Module):
    """A module whose result is a tuple, as that of a graph."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.module(x),)


def modules(width: int) -> dict[str, tuple[ExportGraph, float]]:
    """Return an MLP in all forms."""
    x = torch.randn(1, TOKENS, width)
    dense = Mlp(width).eval()

    def graph(module: nn.Module) -> ExportGraph:
        return ExportGraph("module", Only(module).eval(), {"x": x}, ["y"], {"x": {1: "tokens"}})

    found = {"dense": (graph(dense), 1.0)}
    part = Replaceable("mlp", "mlp", True, ("fc1",), dense.act, "fc2")
    module = adaptive(nn.ModuleDict({"mlp": dense}), part, AcmOptions(gates="random")).eval()
    with torch.no_grad():
        made = module.gate(x).flatten(0, -2)
    for budget in BUDGETS:
        shift = shift_for({"mlp": module}, {"mlp": made}, budget)
        share = executed({"mlp": module}, {"mlp": made}, shift)
        found[f"dynamic {budget}"] = graph(DynamicModule(module, Point(shift=shift))), share
        found[f"static {budget}"] = graph(StaticModule(module, round(4 * budget))), budget
    found["masked 0.5"] = graph(module), 1.0
    return found


def models(kinds: list[str], folder: Path) -> dict[str, tuple[ExportGraph, float]]:
    """Return a ViT in all forms."""
    import timm

    file = folder / "teacher.safetensors"
    save_weights(timm.create_model(MODEL).state_dict(), file)
    teacher, target = xarch.load_teacher(f"timm:{MODEL}?checkpoint={file}"), AcmTarget()
    options = AcmOptions.model_validate({"modules": kinds, "gates": "random"})
    student = target.build(teacher.facts, options, {}, device=torch.device("cpu"))
    target.initialise(student, teacher)
    student.module.eval().requires_grad_(False)
    pictures = torch.rand(PICTURES, 3, SIZE, SIZE)
    shares = settle(student, pictures)

    def graph(found: ExportGraph) -> ExportGraph:
        found.inputs["images"] = pictures
        return found

    [dense] = target.teacher_graphs(teacher, cpu, AcmExport())
    forms = {"dense": (graph(dense), 1.0)}
    for budget in BUDGETS:
        for mode, share in (("dynamic", shares[budget]), ("static_budget", budget)):
            [made] = acm_graphs(student, cpu, AcmExport.model_validate({"mode": mode, "budget": budget}))
            forms[f"{mode.partition('_')[0]} {budget}"] = graph(made), share
    [masked] = acm_graphs(student, cpu, AcmExport(mode="masked", budget=0.5))
    forms["masked 0.5"] = graph(masked), 1.0
    return forms


def settle(student: AcmStudent, pictures: torch.Tensor) -> dict[float, float]:
    """Shift the gates to every budget on these pictures; return what they then take."""
    rows, shares = [], {}
    for budget in BUDGETS:
        shift = 0.0
        for _ in range(3):
            made = values(student, pictures, shift)
            shift = shift_for(student.adaptive, made, budget)
        shares[budget] = executed(student.adaptive, values(student, pictures, shift), shift)
        fixed = {path: round(budget * module.learners) for path, module in student.adaptive.items()}
        rows.append({"budget": budget, "shift": shift, "fixed": fixed})
    student.decide({"tables": rows})
    return shares


def values(student: AcmStudent, pictures: torch.Tensor, shift: float) -> dict[str, torch.Tensor]:
    """Return path -> what its gate gives [T, K] at a shift."""
    found: dict[str, torch.Tensor] = {}

    def take(name: str, value: torch.Tensor) -> None:
        found[name.rpartition(".")[0]] = value.flatten(0, -2)

    with torch.no_grad(), student.at(dict.fromkeys(student.adaptive, Point(shift=shift))):
        student.run(Batch({"images": pictures}, len(pictures)), {f"{path}.gate" for path in student.adaptive}, take)
    return found


if __name__ == "__main__":
    main()
