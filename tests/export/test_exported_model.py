"""Exported files as a model with taps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.export.export_models import PlainStudent, PlainTarget
from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph
from xarch.errors import PlanError
from xarch.export.exported_model import ExportedModel
from xarch.export.profiles import cpu
from xarch.export.run import export_profile
from xarch.files.manifest import seal


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x) * gain
        return y, y.relu()


def files(folder: Path, rows: dict[int, str], **changes: object) -> tuple[PlainStudent, ExportedModel]:
    torch.manual_seed(0)
    student = PlainStudent(Net().eval(), ["x", "gain"], {"y": "BC", "z": "BC"})
    inputs = {"x": torch.rand(3, 6), "gain": torch.rand(4)}
    declared: dict[str, object] = {"reads": {"x": "x", "gain": "gain"}, "gives": {"a": "y", "b": "z"}, **changes}
    graph = ExportGraph("g", student.module, inputs, ["a", "b"], {"x": rows}, **declared)  # type: ignore[arg-type]
    export_profile(
        student, PlainTarget(graph), cpu, options={}, batches=[batch(7)], out=folder, metadata={}, say=lambda line: None
    )
    return student, ExportedModel(folder, student, threads=1)


def batch(rows: int) -> Batch:
    generator = torch.Generator().manual_seed(rows)
    x = torch.rand(rows, 6, generator=generator)
    return Batch({"x": x, "gain": torch.ones(rows, 4), "label": torch.ones(rows)}, rows)


@pytest.mark.parametrize("rows", [{0: "rows"}, {}], ids=["free", "static"])
def test_files_give_the_students_taps_at_any_batch(rows: dict[int, str], tmp_path: Path) -> None:
    """vision 2.19: evaluate never saw exported files."""
    student, model = files(tmp_path / "out", rows)
    assert list(model.taps()) == ["y", "z"]
    for size in (1, 3, 8):
        seen, wanted = model.collect(batch(size), {"y", "z"}), student.collect(batch(size), {"y", "z"})
        for tap, value in wanted.items():
            assert torch.allclose(seen[tap], value, atol=1e-6)


def test_taps_that_no_file_gives_are_named(tmp_path: Path) -> None:
    _, model = files(tmp_path / "out", {0: "rows"})
    with pytest.raises(PlanError, match="reads w, the exported graphs compute y, z"):
        model.collect(batch(2), {"y", "w"})


def test_graphs_that_say_nothing_cannot_be_judged(tmp_path: Path) -> None:
    out = tmp_path / "out"
    student, _ = files(out, {0: "rows"})
    described = json.loads((out / "profile.json").read_text())
    described["graphs"]["g"]["gives"] = {}
    (out / "profile.json").write_text(json.dumps(described))
    seal(out)
    with pytest.raises(PlanError, match="none of the graphs g declares inputs and outputs"):
        ExportedModel(out, student, threads=1)
