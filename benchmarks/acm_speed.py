"""Adaptive models against their dense teacher: exported ones in onnxruntime, and one module there and in torch.

    python benchmarks/acm_speed.py
    python benchmarks/acm_speed.py --parts modules torch --repeats 20

`models`: a ViT-S for 224 pixels with random weights, eight pictures, MLPs and projections or MLPs alone, gates by
chance shifted to a budget. `modules`: an MLP of a ViT on as many tokens; `torch`: the same without a graph, by the
backends of `prefix_mlp`. `decode`: SmolLM2-135M with adaptive MLPs, one token after another, batch 1, a token's mean.
All forms of a comparison take turns; one thread; CPU milliseconds are the least of all turns. `executed` counts gates.
An interrupted measurement resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

import xarch
from benchmarks import page
from benchmarks.sessions import Sessions
from benchmarks.store import Store, add_options, header
from xarch import Batch, ExportGraph, Replaceable, graph_metadata, open_session, save_weights
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu
from xarch.export.weights import WeightStore, externalise
from xarch.kernels import use_backend
from xarch_acm.cut import DynamicModule, StaticModule
from xarch_acm.export import acm_graphs
from xarch_acm.learners import adaptive
from xarch_acm.module import AdaptiveModule, Point
from xarch_acm.options import AcmExport, AcmOptions
from xarch_acm.student import AcmStudent
from xarch_acm.tables import executed, shift_for
from xarch_acm.target import AcmTarget
from xarch_decoder.bench import LanguageGraphs, States

MODEL, SIZE, PICTURES = "vit_small_patch16_224", 224, 8
KINDS = {"MLPs and projections": ["mlp", "qkv", "o"], "MLPs": ["mlp"]}
BUDGETS = (0.25, 0.5, 0.75)
WIDTHS, TOKENS = (384, 768), 1576
NARROW, FEW = 192, 197
"""Width and tokens of a small MLP, one picture of a small ViT."""
REPEATS = 10
DECODER, READ, DECODED = "zoo:smollm2-135m", 32, 32
"""Tokens that are read before, and those that are timed."""

Forms = dict[str, tuple[Callable[[], object], float]]
"""Name -> what is timed, and the share of the learners' multiply-adds that it takes; the first is the rival."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ["modules", "torch", "models", "decode"]
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    add_options(parser, "acm_speed")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = {"model": MODEL, "pictures": PICTURES, "tokens": TOKENS, "repeats": chosen.repeats}
    settings |= {"decoder": DECODER, "decoded": DECODED}
    store = Store(chosen.out, header("acm_speed", settings, threads=1), chosen.fresh)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        cases: list[tuple[str, dict[str, object], Callable[[], Forms]]] = []
        for width in WIDTHS:
            cases.append(("modules", {"part": "module", "width": width}, partial(exported_modules, width, folder)))
            cases.append(
                ("torch", {"part": "torch", "width": width, "tokens": TOKENS}, partial(in_torch, width, TOKENS))
            )
        cases.append(("torch", {"part": "torch", "width": NARROW, "tokens": FEW}, partial(in_torch, NARROW, FEW)))
        for name, kinds in KINDS.items():
            cases.append(("models", {"part": "model", "modules": name}, partial(exported_models, kinds, folder)))
        cases.append(("decode", {"part": "decode", "modules": "MLPs"}, partial(decoders, folder)))
        for part, said, forms in cases:
            if part in chosen.parts and store.find(**said) is None:
                compare(store, forms(), chosen.repeats, said, tokens=DECODED if part == "decode" else 1)
    page.show(store.finish())


def compare(store: Store, forms: Forms, repeats: int, said: Mapping[str, object], tokens: int) -> None:
    """Measure forms in turns and add a point for each.

    Args:
        said: what all points say. tokens: among which the time of a form is divided.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 1):
        for name, (run, _) in forms.items():
            begin = time.process_time()
            run()
            if turn:
                times[name].append((time.process_time() - begin) / tokens)
    rival = min(times[next(iter(forms))])
    for name, (_, share) in forms.items():
        least = min(times[name])
        middle = float(np.median(times[name]))
        figures = {"cpu_ms": 1e3 * least, "median_cpu_ms": 1e3 * middle, "executed": share, "of_dense": least / rival}
        point = {**said, "form": name, **{k: round(v, 4) for k, v in figures.items()}}
        print(store.add(point), file=sys.stderr)


def opened(graphs: Mapping[str, tuple[ExportGraph, float]], folder: Path) -> Forms:
    """Return sessions of onnxruntime with the graphs' own inputs."""
    found: Forms = {}
    for number, (name, (graph, share)) in enumerate(graphs.items()):
        path = folder / f"{number}.onnx"
        ir.save(to_onnx(graph, cpu), path)
        session = open_session(path, cpu.provider, threads=1)
        feed = {key: value.numpy() for key, value in graph.inputs.items()}
        found[name] = partial(session.run, None, feed), share
    return found


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


def adapted(width: int, tokens: int) -> tuple[Mlp, AdaptiveModule, torch.Tensor, dict[float, tuple[float, float]]]:
    """Return an MLP, its adaptive form, tokens [1, T, D], and budget -> shift and the share that runs."""
    x = torch.randn(1, tokens, width)
    dense = Mlp(width).eval().requires_grad_(False)
    part = Replaceable("mlp", "mlp", True, ("fc1",), dense.act, "fc2", "gelu")
    module = adaptive(nn.ModuleDict({"mlp": dense}), part, AcmOptions(gates="random")).eval().requires_grad_(False)
    made = {"mlp": module.gate(x).flatten(0, -2)}
    shifts = {budget: shift_for({"mlp": module}, made, budget) for budget in BUDGETS}
    return dense, module, x, {b: (shift, executed({"mlp": module}, made, shift)) for b, shift in shifts.items()}


def exported_modules(width: int, folder: Path) -> Forms:
    """Return an MLP in all forms of a graph."""
    dense, module, x, points = adapted(width, TOKENS)

    def graph(form: nn.Module) -> ExportGraph:
        return ExportGraph("module", Only(form).eval(), {"x": x}, ["y"], {"x": {1: "tokens"}})

    found = {"dense": (graph(dense), 1.0)}
    for budget, (shift, share) in points.items():
        found[f"dynamic {budget}"] = graph(DynamicModule(module, Point(shift=shift))), share
        found[f"static {budget}"] = graph(StaticModule(module, round(4 * budget))), budget
    found["masked 0.5"] = graph(module), 1.0
    return opened(found, folder)


def in_torch(width: int, tokens: int) -> Forms:
    """Return an MLP in torch: dense, and adaptive by every backend."""
    dense, module, x, points = adapted(width, tokens)

    def run(backend: str, shift: float) -> torch.Tensor:
        module.point = Point(shift=shift)
        with torch.no_grad(), use_backend(backend):
            return module(x)

    found: Forms = {"dense": (partial(dense, x), 1.0)}
    for budget, (shift, share) in points.items():
        for backend in ("torch", "cpp"):
            found[f"{backend} {budget}"] = partial(run, backend, shift), share
    return found


def decoders(folder: Path) -> Forms:
    """Return the teacher and its student in all forms, decoding tokens that are given; the cache is in place."""
    teacher, target = xarch.load_teacher(DECODER), AcmTarget()
    options = AcmOptions(modules=["mlp"], gates="random")
    student = target.build(teacher.facts, options, {}, device=torch.device("cpu"))
    target.initialise(student, teacher)
    student.module.eval().requires_grad_(False)
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, 40_000, (1, READ + DECODED)))
    batch = Batch({"input_ids": ids}, ids.numel())
    shares = settle(student, batch)

    def form(name: str, graphs: Sequence[ExportGraph]) -> Callable[[], object]:
        place = folder / name
        place.mkdir()
        with WeightStore(place / "student.onnx.data") as weights:
            for graph in graphs:
                model = to_onnx(graph, cpu)
                externalise(model, weights)
                told = {k: v if isinstance(v, str) else json.dumps(v) for k, v in graph.metadata.items()}
                model.metadata_props.update({f"xarch.{k}": v for k, v in told.items()})
                ir.save(model, place / f"{graph.name}.onnx")
        names = [graph.name for graph in graphs]
        call, driven = Sessions(place), LanguageGraphs({n: graph_metadata(place / f"{n}.onnx") for n in names})
        token = ids[0].numpy()

        def decode(held: States, first: int, last: int) -> States:
            for position in range(first, last):
                _, held = driven.step(call, token[position : position + 1], position, held)
            return held

        read = decode(driven.initial(room=READ + DECODED), 0, READ)
        return partial(decode, read, READ, READ + DECODED)

    graph: dict[str, list[int]] = {"prefill": []}
    found: Forms = {"dense": (form("dense", target.teacher_graphs(teacher, cpu, AcmExport(graph=graph))), 1.0)}
    for budget in BUDGETS[1:]:
        for mode, share in (("dynamic", shares[budget]), ("static_budget", budget)):
            graphs = acm_graphs(
                student, cpu, AcmExport.model_validate({"mode": mode, "budget": budget, "graph": graph})
            )
            name = f"{mode.partition('_')[0]} {budget}"
            found[name] = form(name, graphs), share
    return found


def exported_models(kinds: list[str], folder: Path) -> Forms:
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
    shares = settle(student, Batch({"images": pictures}, len(pictures)))

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
    return opened(forms, folder)


def settle(student: AcmStudent, batch: Batch) -> dict[float, float]:
    """Shift the gates to every budget on a batch; return what they then take."""
    rows, shares = [], {}
    for budget in BUDGETS:
        shift = 0.0
        for _ in range(3):
            made = values(student, batch, shift)
            shift = shift_for(student.adaptive, made, budget)
        shares[budget] = executed(student.adaptive, values(student, batch, shift), shift)
        fixed = {path: round(budget * module.learners) for path, module in student.adaptive.items()}
        rows.append({"budget": budget, "shift": shift, "fixed": fixed})
    student.decide({"tables": rows})
    return shares


def values(student: AcmStudent, batch: Batch, shift: float) -> dict[str, torch.Tensor]:
    """Return path -> what its gate gives [T, K] at a shift."""
    found: dict[str, torch.Tensor] = {}

    def take(name: str, value: torch.Tensor) -> None:
        found[name.rpartition(".")[0]] = value.flatten(0, -2)

    with torch.no_grad(), student.at(dict.fromkeys(student.adaptive, Point(shift=shift))):
        student.run(batch, {f"{path}.gate" for path in student.adaptive}, take)
    return found


if __name__ == "__main__":
    main()
