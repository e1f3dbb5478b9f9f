"""Which plugins the user switched off: a list in the settings folder, and an environment variable for one run."""

from __future__ import annotations

import os
from pathlib import Path

from xarch.errors import UsageError
from xarch.store.atomic import read_json, write_json
from xarch.store.home import config_dir

CORE = "core"
EVERYTHING = frozenset({"all", "*"})


def state_file() -> Path:
    """The file that holds the list."""
    return config_dir() / "plugins.json"


def stored_disabled() -> list[str]:
    """Names in the user's list, sorted.

    Raises:
        UsageError: the file exists and is not what xarch writes.
    """
    path = state_file()
    if not path.is_file():
        return []
    data = read_json(path)
    names = data.get("disabled") if isinstance(data, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UsageError(f'{path} should hold {{"disabled": [NAME, ...]}}', f"delete {path}")
    return sorted(set(names))


def environment_disabled() -> list[str]:
    """Names in XARCH_DISABLE_PLUGINS (comma-separated; ``all`` leaves only the core)."""
    return [name.strip() for name in os.environ.get("XARCH_DISABLE_PLUGINS", "").split(",") if name.strip()]


def disable(name: str) -> None:
    """Add ``name`` to the user's list.

    Raises:
        UsageError: the core cannot be switched off.
    """
    if name == CORE:
        raise UsageError("the core plugin cannot be disabled: the engine's own stages and objectives live there")
    _write({*stored_disabled(), name})


def enable(name: str) -> None:
    """Take ``name`` off the user's list."""
    _write(set(stored_disabled()) - {name})


def _write(names: set[str]) -> None:
    path = state_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"disabled": sorted(names)})
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}", "set XARCH_HOME to a folder you may write") from e
