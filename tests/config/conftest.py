from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xarch.registry.loader import get_registry

RECIPES = Callable[..., None]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variable of the caller leaks into a test, and the cached registry does not leak out of it."""
    for name in [n for n in os.environ if n.startswith("XARCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XARCH_DISABLE_PLUGINS", "all")
    monkeypatch.chdir(tmp_path)
    get_registry.cache_clear()
    yield
    get_registry.cache_clear()


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RECIPES:
    """``recipes(name=yaml, ...)`` makes packaged recipes of a plugin file."""

    def make(**texts: str) -> None:
        folder = tmp_path / "plugin"
        folder.mkdir()
        for name, text in texts.items():
            (folder / f"{name}.yaml").write_text(text)
        declared = "\n".join(
            f"    registry.recipe('{name}', load=f'{{__name__}}:{name}.yaml', summary='recipe {name}')"
            for name in texts
        )
        code = f"from xarch import hookimpl\n\n@hookimpl\ndef xarch_register(registry):\n{declared}\n"
        (folder / "given.py").write_text(code)
        monkeypatch.setenv("XARCH_PLUGIN_FILES", str(folder / "given.py"))
        get_registry.cache_clear()

    return make
