"""Export of a student to one profile: graphs, shared weights, checks and parity, all or nothing."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir
import torch

from xarch._version import __version__
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.batch import Batch
from xarch.contracts.export import Divergence, ExportGraph, ParityCase, Profile
from xarch.contracts.model import Student, TapModel
from xarch.engine.stopwatch import Spent, Stopwatch
from xarch.errors import PlanError
from xarch.export.bits import Choice, choose
from xarch.export.blocks import BLOCK_OPS, quantise_blocks
from xarch.export.cases import single_graph_cases
from xarch.export.check import check_file
from xarch.export.choosing import integers
from xarch.export.examples import save_examples
from xarch.export.half import halve
from xarch.export.in_place import in_place
from xarch.export.onnx_export import to_onnx
from xarch.export.origins import origins
from xarch.export.packed import pack_products
from xarch.export.parity import LIMITS, Blame, measure_parity, raise_unless_passed
from xarch.export.proof import Comparison, Prover
from xarch.export.session import EXACT_SUMS, NO_PREPACKING
from xarch.export.weights import WeightStore, externalise
from xarch.files.atomic import new_folder, write_json
from xarch.files.manifest import seal

T = TypeVar("T")
Translate = Callable[[ExportGraph, Profile], ir.Model]
WEIGHTS = "student.onnx.data"
"""The single weight file of all graphs of an export."""


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        graphs: names of the graphs, in the adapter's order.
        parity, profile: contents of ``parity.json`` and ``profile.json``.
    """

    graphs: list[str]
    parity: dict[str, Any]
    profile: dict[str, Any]


def export_profile(
    student: Student,
    adapter: TargetAdapter,
    profile: Profile,
    *,
    options: Any,
    batches: Sequence[Batch],
    out: Path,
    metadata: Mapping[str, Any],
    say: Callable[[str], None],
    graphs: Sequence[ExportGraph] | None = None,
    calibration: Sequence[Batch] = (),
    translate: Translate = to_onnx,
    blame: Blame = lambda during: nullcontext(),
    complete: Callable[[Path, Sequence[str]], None] = lambda folder, graphs: None,
) -> ExportResult:
    """Write ``out/GRAPH.onnx`` for every graph, the shared weights, ``parity.json`` and ``profile.json``.

    The folder gets its name only when it is complete. If the parity gate fails, it is kept too, but with
    every graph renamed to ``GRAPH.onnx.rejected``, so that it cannot be mistaken for an export.

    Args:
        options: values of the target's ``ExportOptions``.
        batches: held-out data on which the student and its graphs are compared, with the views of both sides.
        calibration: other held-out data, for profiles with weights of few bits; default: ``batches``.
        metadata: facts written into every graph's ``metadata_props`` under ``xarch.KEY``.
        say: receives a line of progress at each step.
        graphs: exported instead of the adapter's graphs; checked in the same way.
        translate: gives the model of a graph, to be changed here; default: :func:`to_onnx`, which translates all anew.
        blame: wraps calls into the adapter and its results; takes a description of the call.
        complete: adds files to the folder of an export that passed, given that folder and the names of the graphs.

    Raises:
        PlanError: a graph cannot be exported or does not fit the profile.
        ParityError: a graph does not reproduce the student.
    """
    student.module.eval()
    if graphs is None:
        with blame("export_graphs"):
            graphs = list(adapter.export_graphs(student, profile, options))
    graphs = list(graphs)
    _check_names(graphs)

    def seen_in_calibration() -> Iterable[ParityCase]:
        data = calibration or batches
        with blame("calibration_cases"):
            own = list(adapter.calibration_cases(student, graphs, data, profile))
        return own or Prover(student, graphs, data).drives()

    def divergence() -> Divergence | None:
        with blame("divergence"):
            return adapter.divergence(student, calibration or batches)

    with new_folder(Path(out)) as folder:
        described = _write_graphs(graphs, profile, folder, metadata, say, seen_in_calibration, translate, divergence)
        clock = Stopwatch()
        prover = Prover(student, graphs, batches)
        comparisons = _comparisons(prover, adapter, student, graphs, batches, profile, blame)
        parity = measure_parity(
            folder, graphs, comparisons, profile, threads=torch.get_num_threads(), notes=prover.notes, blame=blame
        )
        _record(described, "parity", clock.spent)
        names = [graph.name for graph in graphs]
        if not parity["passed"]:
            for name in names:
                os.replace(folder / f"{name}.onnx", folder / f"{name}.onnx.rejected")
        write_json(folder / "parity.json", parity)
        write_json(folder / "profile.json", described)
        if parity["passed"]:
            complete(folder, names)
        seal(folder)
    raise_unless_passed(parity, Path(out))
    verb = "reproduces" if len(names) == 1 else "reproduce"
    say(f"export {profile.name}: {', '.join(names)} {verb} the student ({_size(described['bytes'])})")
    return ExportResult(names, parity, described)


def _comparisons(
    prover: Prover,
    adapter: TargetAdapter,
    student: Student,
    graphs: Sequence[ExportGraph],
    batches: Sequence[Batch],
    profile: Profile,
    blame: Blame,
) -> Iterator[Comparison]:
    """Yield comparisons of every graph on held-out data, then the cases of the target's author, one at a time."""
    for graph in graphs:
        yield from guarded(prover.held_out(graph), blame, "the student's taps")
    with blame("parity_cases"):
        cases = adapter.parity_cases(student, graphs, batches, profile)
    for case in guarded(cases, blame, "parity_cases"):
        with blame("the student's taps"):
            comparison = prover.complete(case)
        yield comparison


def guarded(items: Iterable[T], blame: Blame, during: str) -> Iterator[T]:
    """Iterate over ``items`` under ``blame``; a generator's code needs it at every step."""
    drawn = iter(items)
    while True:
        with blame(during):
            item = next(drawn, None)
        if item is None:
            return
        yield item


def export_teacher(
    graphs: Sequence[ExportGraph],
    profile: Profile,
    out: Path,
    say: Callable[[str], None],
    *,
    teacher: TapModel | None = None,
    batches: Sequence[Batch] = (),
    translate: Translate = to_onnx,
) -> None:
    """Write a teacher's graphs for the bench to compare speeds: with weights in the profile's bits where only weights
    have few; in 8 bits if the profile has 8 bits, its graphs declare what they read, and there is data to calibrate
    them; else in float32.

    Args:
        batches: calibration data as the teacher sees it.
        translate: as of :func:`export_profile`.

    Raises:
        PlanError: a graph cannot be exported or does not fit the profile.
        ParityError: a graph does not reproduce the teacher.
    """
    drives: list[ParityCase] = []
    if profile.dtype == "int8" and teacher is not None and batches:
        drives = list(Prover(teacher, graphs, batches).drives())
    if not drives and not _weight_bits(graphs, profile):
        profile = replace(profile, dtype="float32")
    with new_folder(Path(out)) as folder:
        _write_graphs(graphs, profile, folder, {"role": "teacher"}, say, lambda: drives, translate)
        cases = (Comparison(case, {}) for case in single_graph_cases(graphs))
        parity = measure_parity(folder, graphs, cases, profile, threads=torch.get_num_threads())
        raise_unless_passed(parity, Path(out))
        seal(folder)


def _check_names(graphs: Sequence[ExportGraph]) -> None:
    names = [graph.name for graph in graphs]
    if not names:
        raise PlanError("the target exports no graph")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or names.count(name) > 1:
            raise PlanError(f"graph names must be unique file stems, got {names}")


def _write_graphs(
    graphs: Sequence[ExportGraph],
    profile: Profile,
    folder: Path,
    metadata: Mapping[str, Any],
    say: Callable[[str], None],
    cases: Callable[[], Iterable[ParityCase]],
    translate: Translate = to_onnx,
    divergence: Callable[[], Divergence | None] = lambda: None,
) -> dict[str, Any]:
    entries: dict[str, dict[str, Any]] = {}
    models: dict[str, ir.Model] = {}
    clock = Stopwatch()
    for graph in graphs:
        started = time.monotonic()
        models[graph.name] = translate(graph, profile)
        entries[graph.name] = {"seconds": round(time.monotonic() - started, 2)}
    weights = _weight_bits(graphs, profile)
    choice = _bits(models, graphs, weights, divergence, say) if weights else Choice()
    models, reduced = _in_blocks(models, weights, choice) if weights else _reduce(models, profile, cases, say)
    with WeightStore(folder / WEIGHTS) as store:
        for graph in graphs:
            started = time.monotonic()
            model = models[graph.name]
            weight_bytes = externalise(model, store, transposed=profile.allows("Transpose"))
            model.producer_name, model.producer_version = "xarch", __version__
            model.graph.name = graph.name
            exact = profile.dtype == "int8" and not weights
            options, shared = _session_options(graph, blocks=bool(weights), exact=exact), in_place(model)
            model.metadata_props.update(_properties(graph, profile, metadata, options, shared))
            ir.save(model, folder / f"{graph.name}.onnx")
            seconds = round(entries[graph.name]["seconds"] + time.monotonic() - started, 2)
            entries[graph.name] = {
                "opset": model.opset_imports[""],
                "ir": model.ir_version,
                "weight_bytes": weight_bytes,
                "seconds": seconds,
                "variant": graph.variant,
                "reads": dict(graph.reads),
                "gives": dict(graph.gives),
                "session_options": options,
                **({"in_place": shared} if shared else {}),
                "free": sorted(name for name, dims in graph.dynamic.items() if 0 in dims),
                **reduced.get(graph.name, {}),
            }
            say(f"export {profile.name}: {graph.name} written in {seconds} s")
    exported = clock.spent
    save_examples(graphs, folder)
    clock = Stopwatch()
    for graph in graphs:
        path = folder / f"{graph.name}.onnx"
        entries[graph.name]["ops"] = check_file(path, profile, origins(models[graph.name]))
        entries[graph.name]["graph_bytes"] = path.stat().st_size
    described: dict[str, Any] = {
        "profile": {
            "name": profile.name,
            "provider": profile.provider,
            "max_opset": profile.max_opset,
            "max_ir": profile.max_ir,
            "static": profile.static,
            "dtype": profile.dtype,
        },
        "graphs": entries,
        "weights": {"file": WEIGHTS, "bytes": store.bytes, "shared_bytes": store.saved},
        "bytes": store.bytes + sum(e["graph_bytes"] for e in entries.values()),
        **({"bits": choice.figures} if choice.figures else {}),
        "seconds": {},
        "cpu_seconds": {},
    }
    _record(described, "export", exported)
    _record(described, "check", clock.spent)
    return described


def _record(described: dict[str, Any], part: str, spent: Spent) -> None:
    """Note how long a part took by the clock and of the CPU: beside other work only the second is its own."""
    described["seconds"][part], described["cpu_seconds"][part] = round(spent.seconds, 2), round(spent.cpu_seconds, 2)


def _weight_bits(graphs: Sequence[ExportGraph], profile: Profile) -> int:
    """Return the bits of weights that are stored in blocks, 0 if none are.

    Raises:
        PlanError: the profile has 4 bits, and its runtime reads no blocks.
    """
    able = profile.runtime_ops >= BLOCK_OPS
    if profile.dtype == "int4":
        if not able:
            raise PlanError(f"export {profile.name}: a runtime without {', '.join(sorted(BLOCK_OPS))} has no 4 bits")
        return 4
    return 8 if able and profile.dtype == "int8" and all(graph.weight_only for graph in graphs) else 0


def _bits(
    models: dict[str, ir.Model],
    graphs: Sequence[ExportGraph],
    bits: int,
    divergence: Callable[[], Divergence | None],
    say: Callable[[str], None],
) -> Choice:
    """Return which weights of the profile's few bits have 8 instead."""
    measured = divergence() if bits < 8 else None
    if measured is None:
        return Choice()
    choice = choose(models, graphs, measured)
    say(f"weights in {bits} bits: {choice.text()}")
    return choice


def _in_blocks(
    models: dict[str, ir.Model], bits: int, choice: Choice
) -> tuple[dict[str, ir.Model], dict[str, dict[str, Any]]]:
    """Return the graphs with weights in blocks, and the changes to each."""
    changed = {
        name: {"weight_bits": bits, "block_products": quantise_blocks(model, bits, choice.wide)}
        for name, model in models.items()
    }
    pack_products(list(models.values()))
    return models, changed


def _reduce(
    models: dict[str, ir.Model],
    profile: Profile,
    cases: Callable[[], Iterable[ParityCase]],
    say: Callable[[str], None],
) -> tuple[dict[str, ir.Model], dict[str, dict[str, Any]]]:
    """Return the graphs with weights in the profile's dtype, and the changes to each."""
    if profile.dtype == "float16":
        return models, {name: {"float16_products": halve(model)} for name, model in models.items()}
    if profile.dtype != "int8":
        return models, {}
    limit = LIMITS[profile.dtype].output
    made, counts, form, tried = integers(models, profile, cases, threads=torch.get_num_threads(), limit=limit)
    figures = {name: {k: round(v, 5) for k, v in asdict(measured).items()} for name, measured in tried.items()}
    say(
        f"export {profile.name}: {form} 8-bit products"
        + "".join(f"; {name}: rel L2 {m.rel_l2:.3g}, {m.cpu_ms:.1f} CPU ms" for name, m in tried.items())
    )
    facts = {"int8_form": form, **({"int8_tried": figures} if figures else {})}
    return dict(made), {name: {"int8_products": count, **facts} for name, count in counts.items()}


def _session_options(graph: ExportGraph, *, blocks: bool, exact: bool) -> dict[str, str]:
    """Return how a session on the graph is configured best.

    Args:
        blocks: weights are in blocks of few bits.
        exact: inputs of products have 8 bits, too.
    """
    # Weights in blocks that are not repacked are unpacked by every call: a hundred times slower.
    packed = blocks or graph.metadata.get("prepack", True)
    return ({} if packed else {NO_PREPACKING: "1"}) | (EXACT_SUMS if exact else {})


def _properties(
    graph: ExportGraph,
    profile: Profile,
    metadata: Mapping[str, Any],
    options: Mapping[str, str],
    shared: Mapping[str, str],
) -> dict[str, str]:
    """Build ``metadata_props``: keys prefixed with ``xarch.``, strings unchanged, everything else as JSON."""
    facts = {
        "version": __version__,
        "graph": graph.name,
        "profile": profile.name,
        "dtype": profile.dtype,
        **({} if graph.throughput is None else {"work": asdict(graph.throughput)}),
        **({"variant": graph.variant} if graph.variant else {}),
        **graph.metadata,
        **metadata,
        "prepack": NO_PREPACKING not in options,
        "session_options": options,
        **({"in_place": shared} if shared else {}),
    }
    return {
        key if key.startswith("xarch.") else f"xarch.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in facts.items()
    }


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
