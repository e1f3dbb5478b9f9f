"""The user's list of disabled plugins."""

from __future__ import annotations

import pytest

from tests.registry.fake_dist import Site
from xarch.errors import UsageError
from xarch.files.home import cache_dir, config_dir
from xarch.registry.loader import disable, enable, state_file, stored_disabled


def test_disable_and_enable_persist(site: Site) -> None:
    assert stored_disabled() == []
    disable("b")
    disable("a")
    disable("a")
    assert stored_disabled() == ["a", "b"]
    enable("b")
    enable("never-there")
    assert stored_disabled() == ["a"]


def test_the_core_stays(site: Site) -> None:
    with pytest.raises(UsageError, match="core"):
        disable("core")


@pytest.mark.parametrize("content", ["{", "[]", '{"disabled": 3}', '{"disabled": [1]}', "\x00"])
def test_a_damaged_file_is_named(site: Site, content: str) -> None:
    state_file().parent.mkdir(parents=True)
    state_file().write_text(content)
    with pytest.raises(UsageError, match=r"plugins\.json"):
        stored_disabled()


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("XARCH_HOME", str(tmp_path))
    assert (config_dir(), cache_dir()) == (tmp_path / "config", tmp_path / "cache")
    monkeypatch.delenv("XARCH_HOME")
    assert config_dir() != cache_dir()
    assert "xarch" in cache_dir().parts
