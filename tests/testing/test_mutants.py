"""Mutants of a target: none survives the gate, and one that is the target itself does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.export.decoder_export import FACTS, DecoderTarget, decoder_student
from tests.export.export_models import PlainStudent, PlainTarget
from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph
from xarch.export.profiles import cpu
from xarch.testing.mutants import Change, surviving_mutants


def test_no_mutant_of_a_declared_graph_survives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = PlainStudent(nn.Linear(6, 4).eval(), ["x"], {"y": "BK"})
    graph = ExportGraph(
        "model", student.module, {"x": torch.rand(2, 6)}, ["y"], {"x": {0: "batch"}}, reads={"x": "x"}, gives={"y": "y"}
    )
    data = [Batch({"x": torch.rand(4, 6)}, 4)]
    given = (PlainTarget(graph), student, cpu, {}, data)
    assert list(surviving_mutants(*given, tmp_path / "mutants")) == []
    honest = list(
        surviving_mutants(
            *given, tmp_path / "honest", {"is as it was": lambda graph: Change("output", lambda y: y * 1)}
        )
    )
    assert honest == ["model is as it was"]


@pytest.mark.slow
def test_no_mutant_of_a_loop_over_states_survives(tmp_path: Path) -> None:
    ids = torch.randint(FACTS.vocab, (2, 50), generator=torch.Generator().manual_seed(1))
    data = [Batch({"input_ids": ids}, 100)]
    survivors = surviving_mutants(DecoderTarget(), decoder_student(), cpu, {"prefill": [8]}, data, tmp_path)
    assert list(survivors) == []
