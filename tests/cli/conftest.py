from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))

from fake_dist import Site, forget, make_site

from xarch.plugins.loader import get_registry

STACK = Path(__file__).parents[1] / "engine" / "stack_plugin.py"

RUN = """\
teacher: stack:3
student: {target: low}
data: {ref: noise:8}
export: {targets: []}
stages:
  local:
    matches: [{student: output, objective: sabotage}]
    trains: {all: {}}
    units: 480
    batch: 4
    checkpoint_every: 4
    optimiser: {lr: 0.02}
gates: {mse: {max: 5}}
runtime: {tensorboard: false, threads: 1, device: cpu}
"""


@dataclass
class Ended:
    """A finished ``xarch`` process."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON on standard output; fails if anything else is there."""
        return json.loads(self.out)


Xarch = Callable[..., Ended]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site for fake distributions, a home of its own, and only the core of xarch's plugins."""
    made = make_site(tmp_path, monkeypatch)
    monkeypatch.setenv("XARCH_DISABLE_PLUGINS", "hf,text,mohawk")
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
