"""What all tests share: compiled kernels, which would otherwise be compiled again for each temporary home."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Every worker has a core; threads of all of them on all cores would wait for each other. Before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from xarch.store.home import cache_dir

os.environ.setdefault("XARCH_KERNELS_CACHE", str(cache_dir() / "kernels"))
