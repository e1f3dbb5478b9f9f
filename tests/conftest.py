"""What all tests share: compiled kernels, which would otherwise be compiled again for each temporary home, and a start
that does not depend on the tests before."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Every worker has a core; threads of all of them on all cores would wait for each other. Before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from xarch.files.home import cache_dir

os.environ.setdefault("XARCH_KERNELS_CACHE", str(cache_dir() / "kernels"))
# The same examples in every run: what one finds is found again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
THREADS = torch.get_num_threads()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Unseeded random numbers are the same in every order of tests, also those of a fixture that several tests share;
    conversions inside this process leave their number of threads behind."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: a worker that began it last would end alone."""
    items.sort(key=lambda item: item.path.name != "test_faults.py")
