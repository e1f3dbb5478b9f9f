from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.fake_dist import Site, forget, make_site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = make_site(tmp_path, monkeypatch)
    yield made
    forget(made)
