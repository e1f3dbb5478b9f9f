"""A small part of the fuzz campaign, and whether its harness tells apart what it has to."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from benchmarks.faults.fuzz import TARGETS
from benchmarks.faults.fuzzing import harness, mutate
from benchmarks.faults.fuzzing.harness import CLASSES, Target
from xarch.errors import UsageError

FEW = {
    "configuration": 40,
    "--set": 40,
    "safetensors": 40,
    "GGUF": 12,
    "npz bytes": 10,
    "field header": 30,
    "pictures": 15,
    "cameras": 15,
}
"""Targets that are cheap to prepare, with cases that take a few CPU seconds together."""


@pytest.mark.parametrize("target", [t for t in TARGETS if t.name in FEW], ids=lambda t: t.name)
def test_mutated_inputs_are_refused_or_harmless(tmp_path: Path, target: Target) -> None:
    target.prepare(tmp_path)
    found = harness.run(target, range(FEW[target.name]), 7, tmp_path)
    assert not found.found
    assert found.counts["refused"] > 0
    assert sum(found.counts.values()) == FEW[target.name]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_many_mutated_inputs(tmp_path: Path, target: Target) -> None:
    target.prepare(tmp_path)
    found = harness.run(target, range(1000, 1000 + target.share // 10), 7, tmp_path)
    assert not found.found


def _outcome(rng: random.Random, prepared: Path, folder: Path) -> None:
    """One outcome a case, in the order of the cases below."""
    case = int(folder.name)
    if case == 0:
        raise UsageError("no")
    if case == 2:
        raise ValueError("a fault")
    if case == 3:
        while True:
            pass
    if case == 4:
        bytearray(2 * harness.MEMORY)
    if case == 5:
        os._exit(3)


def test_the_harness_tells_outcomes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "CPU_SECONDS", 0.3)
    found = harness.run(Target("all", 1, lambda folder: None, _outcome), range(7), 0, tmp_path)
    assert {kind: found.counts[kind] for kind in CLASSES} == {
        "refused": 1,
        "accepted": 2,
        "traceback": 1,
        "hang": 1,
        "memory": 1,
        "crash": 1,
    }
    assert len(found.found) == 4
    assert "ValueError" in found.found[0]


def test_a_seed_makes_the_same_inputs() -> None:
    one, two = (mutate.content(random.Random("1 a 3"), b"x" * 200) for _ in range(2))
    assert one == two
    assert mutate.as_json(mutate.tree(random.Random(5), {"a": [1, 2, {"b": "c"}]})) == mutate.as_json(
        mutate.tree(random.Random(5), {"a": [1, 2, {"b": "c"}]})
    )
    assert {t.name for t in TARGETS} >= set(FEW)
    assert sum(t.share for t in TARGETS) >= 10_000
