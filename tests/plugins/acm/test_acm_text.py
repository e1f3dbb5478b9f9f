"""Operating points of text students as exported files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import xarch
from tests.plugins.acm.acm_models import chosen_by_chance
from xarch import Batch
from xarch.export.profiles import cpu
from xarch.export.run import export_profile
from xarch.testing.models import tiny_configuration
from xarch_acm.options import AcmExport, AcmOptions
from xarch_acm.target import AcmTarget
from xarch_decoder.bench import LanguageGraphs


@pytest.mark.slow
def test_every_point_of_a_text_student_is_a_file_that_can_be_measured(tmp_path: Path) -> None:
    teacher, target = xarch.load_teacher(tiny_configuration("decoder", tmp_path)["teacher"]), AcmTarget()
    options = AcmOptions(modules=["mlp"], budgets=[0.5])
    student = chosen_by_chance(target.build(teacher.facts, options, {}, device=torch.device("cpu")), teacher)
    shape = (2, 9)
    batch = Batch(
        {"input_ids": torch.arange(18).view(shape) % 7, "segment_ids": torch.zeros(shape, dtype=torch.int64)}, 2
    )
    given = AcmExport(every_point=True, graph={"prefill": []})
    folder = tmp_path / "export"
    export_profile(student, target, cpu, options=given, batches=[batch], out=folder, metadata={}, say=lambda text: None)
    graphs = json.loads((folder / "profile.json").read_text())["graphs"]
    assert list(graphs) == ["decode_1", "decode_1-gated-50", "decode_1-static-50"]
    metadata = {name: xarch.graph_metadata(folder / f"{name}.onnx") for name in graphs}
    assert LanguageGraphs(metadata).names == {1: "decode_1"}
    points = {"": student, **student.variants()}
    found = []
    for name in ("", "gated-50", "static-50"):
        files = target.exported_point(folder, student, 1, name)
        assert files is not None
        with torch.no_grad():
            made, wanted = (m.collect(batch, {"logits"})["logits"] for m in (files, points[name]))
        found.append(made.of(made.x_BLD))
        assert torch.allclose(found[-1], wanted.of(wanted.x_BLD), atol=1e-4)
    assert not torch.allclose(found[1], found[2], atol=1e-3)
