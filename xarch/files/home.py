"""Where the user's settings and cached downloads live."""

from __future__ import annotations

import os
from pathlib import Path


def config_dir() -> Path:
    """Folder of the user's settings; ``$XARCH_HOME/config`` where XARCH_HOME is set. It is not created."""
    return _home("config")


def cache_dir() -> Path:
    """Folder of downloads and teacher caches; ``$XARCH_HOME/cache`` where XARCH_HOME is set. It is not created."""
    return _home("cache")


def _home(part: str) -> Path:
    override = os.environ.get("XARCH_HOME")
    if override:
        return Path(override).expanduser() / part
    import platformdirs

    return Path(platformdirs.user_config_path("xarch") if part == "config" else platformdirs.user_cache_path("xarch"))
