from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.cli_process import RUN, STACK, Ended, Xarch
from tests.registry.fake_dist import Site, forget, make_site
from xarch.registry.loader import get_registry


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site for fake distributions, a home of its own, and only the core of xarch's plugins."""
    made = make_site(tmp_path, monkeypatch)
    monkeypatch.setenv("XARCH_DISABLE_PLUGINS", "hf,text,acm,encdec,speech,mohawk,memory,pvd,image,timm,pictures")
    monkeypatch.chdir(tmp_path)
    yield made
    forget(made)


@pytest.fixture
def xarch(site: Site, tmp_path: Path) -> Xarch:
    """``xarch(*arguments, **environment)`` runs the command line in a process of its own."""

    def call(*arguments: str, **environment: str) -> Ended:
        path = os.pathsep.join([str(site.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
        ended = subprocess.run(
            [sys.executable, "-m", "xarch", *arguments],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return call


@pytest.fixture
def here(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Xarch:
    """Like ``xarch``, in this process: torch is imported once for all tests."""
    from xarch.cli.app import run

    def call(*arguments: str, **environment: str) -> Ended:
        get_registry.cache_clear()
        with monkeypatch.context() as changed:
            for name, value in environment.items():
                changed.setenv(name, value)
            code = run(list(arguments))
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def stack_run(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of a real, tiny conversion by a third-party plugin file."""
    monkeypatch.setenv("XARCH_PLUGIN_FILES", str(STACK))
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    return file
