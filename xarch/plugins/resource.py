"""Text files inside plugin packages, named ``package:folder/file``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path, PurePosixPath

from xarch.errors import UsageError


def read_resource(load: str) -> str:
    """The UTF-8 text of ``package:folder/file``; for a single-file plugin the folder of that file is the package.

    Raises:
        UsageError: the path leaves the package.
        FileNotFoundError, ModuleNotFoundError: it is not there.
    """
    package, _, path = load.partition(":")
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/"):
        raise UsageError(f"{load!r} leaves its package")
    loaded = sys.modules.get(package)
    spec = getattr(loaded, "__spec__", None) or importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    if spec.submodule_search_locations is None:
        return (Path(spec.origin or "").parent / path).read_text(encoding="utf-8")
    from importlib.resources import files

    return files(package).joinpath(*parts).read_text(encoding="utf-8")
