"""What all tests share: compiled kernels, which would otherwise be compiled again for each temporary home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xarch.store.home import cache_dir

os.environ.setdefault("XARCH_KERNELS_CACHE", str(cache_dir() / "kernels"))

KERNELS = Path(__file__).parent / "kernels"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernels come last: once torch.compile has traced one of them, this process builds some models of transformers in
    memory where they were asked for on the meta device, a 70-billion-parameter description among them.
    """
    items.sort(key=lambda item: item.path.is_relative_to(KERNELS))
