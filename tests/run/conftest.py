from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.stack_case import StackCase
from xarch.registry.loader import get_registry


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StackCase]:
    """The stack family alone beside the core."""
    yield StackCase(tmp_path, monkeypatch)
    get_registry.cache_clear()
