from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache is a folder of the test's own."""
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
