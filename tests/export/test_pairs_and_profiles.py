"""Every profile that a target declares, with a small student: what `xarch list pairs` shows has passed the gate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.other_runtimes import runtime_of
from xarch.contracts.batch import Batch
from xarch.contracts.bench import Call
from xarch.contracts.data import DataRequest
from xarch.export.onnx_export import Translated, to_onnx
from xarch.export.proof import Prover
from xarch.export.run import export_profile
from xarch.export.session import Sessions
from xarch.planning.resolve import resolve_data, resolve_target, resolve_teacher
from xarch.registry.loader import get_registry
from xarch.testing.models import student_family
from xarch.testing.mutants import surviving_mutants


def rows() -> Iterator[Any]:
    for spec in get_registry().specs("target"):
        for profile in spec.data.get("profiles", ()):
            yield pytest.param(spec, profile, id=f"{spec.name}-{profile}", marks=[pytest.mark.slow])


def test_every_target_is_registered_for_some_profile() -> None:
    specs = get_registry().specs("target")
    assert [s.name for s in specs if not s.data.get("profiles") or not s.data.get("recipes")] == []


Small = tuple[Any, Any, list[Batch], Callable[..., Any]]
"""A target's adapter, a small student of it, held-out batches of its family, and what translates its graphs."""


@pytest.fixture(scope="module")
def small_student(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Small]:
    """Makes the student of a target, once for all of its profiles."""
    made: dict[str, Small] = {}

    def make(spec: Any) -> Small:
        if spec.name not in made:
            made[spec.name] = built(spec, tmp_path_factory.mktemp("small"))
        return made[spec.name]

    return make


def built(spec: Any, folder: Path) -> Small:
    registry = get_registry()
    family = registry.create("family", spec.families[0])
    source = resolve_teacher(registry, family.tiny_teacher(folder), {}, lambda text: None)
    teacher = source.adapter.load(source.ref, source.options, device=torch.device("cpu"), dtype=torch.float32)
    target = resolve_target(registry, f"{spec.plugin}:{spec.name}", {}, tiny=True)
    torch.manual_seed(0)
    student = target.adapter.build(teacher.facts, target.options, {}, device=torch.device("cpu"))
    target.adapter.initialise(student, teacher)
    student.finish()
    student.module.eval().requires_grad_(False)
    settings = student_family(spec).tiny_run(folder)
    data = resolve_data(registry, settings["data.ref"], settings.get("data.options", {}))
    processor = teacher.processor()
    request = DataRequest(
        ref=data.ref,
        options=data.options,
        split="heldout",
        samples=2,
        sample=settings.get("data.sample", {}),
        processors={"teacher": processor, "student": processor},
        teacher=teacher,
        facts=teacher.facts,
    )
    batches = list(islice(data.adapter.open(request), 2))
    return target.adapter, student, batches, functools.partial(to_onnx, known=Translated())


@pytest.mark.slow
@pytest.mark.parametrize("spec", [pytest.param(s, id=s.name) for s in get_registry().specs("target")])
def test_no_mutant_of_a_targets_graphs_passes_the_gate(
    spec: Any, small_student: Callable[[Any], Small], tmp_path: Path
) -> None:
    adapter, student, batches, translate = small_student(spec)
    profile = get_registry().create("export", "cpu")
    given = (adapter, student, profile, adapter.ExportOptions(), batches)
    assert list(surviving_mutants(*given, tmp_path / "mutants", translate=translate)) == []


@pytest.mark.parametrize(("spec", "profile"), list(rows()))
def test_a_small_student_passes_the_gate_of_each_declared_profile(
    spec: Any, profile: str, small_student: Callable[[Any], Small], tmp_path: Path
) -> None:
    adapter, student, batches, translate = small_student(spec)
    result = export_profile(
        student,
        adapter,
        get_registry().create("export", profile),
        options=adapter.ExportOptions(),
        batches=batches,
        out=tmp_path / "out",
        metadata={},
        say=lambda line: None,
        translate=translate,
    )
    assert result.parity["passed"]
    assert all(entry["proof"] for entry in result.parity["graphs"].values())
    with runtime_of(profile, tmp_path / "out", result.graphs) as call:
        if call is not None:
            assert_same_elsewhere(call, adapter, student, batches, profile, tmp_path / "out")


def assert_same_elsewhere(
    call: Call, adapter: Any, student: Any, batches: list[Batch], profile: str, folder: Path
) -> None:
    """A case of each graph, which may go on in others, in another runtime and in onnxruntime."""
    made = get_registry().create("export", profile)
    graphs = list(adapter.export_graphs(student, made, adapter.ExportOptions()))
    cases = list(adapter.parity_cases(student, graphs, batches, made))
    cases += [case for case in Prover(student, graphs, batches).drives() if case.graph not in {c.graph for c in cases}]
    known = Sessions(folder, made.provider, threads=1, optimise=True)
    for graph in graphs:
        case = min((c for c in cases if c.graph == graph.name), key=lambda c: c.shape.get("calls", 1))
        found, wanted = case.drive(call), case.drive(known)
        for name, value in wanted.items():
            assert np.linalg.norm(found[name] - value) <= 1e-4 * max(np.linalg.norm(value), 1e-6), (graph.name, name)
