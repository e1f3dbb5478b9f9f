"""Installs distributions made on the fly: a module and a ``.dist-info`` folder on ``sys.path``."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from xarch.registry.loader import get_registry


class Site:
    """A folder of installed distributions; also usable as PYTHONPATH of a subprocess."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(
        self,
        distribution: str,
        module: str,
        code: str,
        *,
        entry: str | None = None,
        version: str = "0.2",
        requires: tuple[str, ...] = (),
        extra: str = "",
    ) -> None:
        """A distribution with one entry point ``entry`` (default: the module's name) and one module."""
        (self.folder / f"{module}.py").write_text(dedent(code))
        self.modules.append(module)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {r}\n" for r in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{needs}")
        suffix = f" [{extra}]" if extra else ""
        (info / "entry_points.txt").write_text(f"[xarch]\n{entry or module} = {module}{suffix}\n")

    def module(self, name: str, code: str) -> None:
        """A module without a distribution."""
        (self.folder / f"{name}.py").write_text(dedent(code))
        self.modules.append(name)


REGISTER = """
    from xarch import hookimpl

    @hookimpl
    def xarch_register(registry):
        {body}
"""


def registering(body: str) -> str:
    """A plugin module whose register hook runs ``body``."""
    return REGISTER.format(body=body)


def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A fresh site on ``sys.path`` and a settings folder of its own; what an earlier test file loaded is forgotten."""
    get_registry.cache_clear()
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    for name in ("XARCH_DISABLE_PLUGINS", "XARCH_STRICT_PLUGINS", "XARCH_PLUGIN_FILES"):
        monkeypatch.delenv(name, raising=False)
    return Site(folder)


def forget(site: Site) -> None:
    """Drop imported fake modules and the cached registry."""
    for name in site.modules:
        sys.modules.pop(name, None)
    get_registry.cache_clear()
