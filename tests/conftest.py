"""What all tests share: compiled kernels, which would otherwise be compiled again for each temporary home."""

from __future__ import annotations

import os

from xarch.store.home import cache_dir

os.environ.setdefault("XARCH_KERNELS_CACHE", str(cache_dir() / "kernels"))
