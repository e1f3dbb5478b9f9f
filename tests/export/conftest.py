"""Exports are slow to make, so tests that only read one share it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.export_models import RecurrentTarget, held_out, make_student
from xarch.export.profiles import cpu
from xarch.export.run import ExportResult, export_profile


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportResult]:
    """A passed export of the recurrent student: ``step_1`` and ``step_4``."""
    out = tmp_path_factory.mktemp("export") / "cpu"
    result = export_profile(
        make_student(),
        RecurrentTarget(),
        cpu,
        options={},
        batches=held_out(),
        out=out,
        metadata={"xarch.teacher": "hf:tiny", "normalisation": {"mean": 0.5}},
        say=lambda line: None,
    )
    return out, result
