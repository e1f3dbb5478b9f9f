"""Start-up imports nothing heavy, whatever the installed plugins do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.cli_process import Xarch
from tests.registry.fake_dist import Site

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "matplotlib", "numpy")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "pairs", "--json"],
        ["plugins"],
        ["plugins", "list", "--json"],
        ["convert", "--help"],
        ["new", "run", "--help"],
        ["doctor", "--help"],
    ],
)
@pytest.mark.parametrize("disabled", ["", "all"])
def test_nothing_heavy_is_imported(
    arguments: list[str], disabled: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("XARCH_HOME", str(tmp_path))
    monkeypatch.setenv("XARCH_DISABLE_PLUGINS", disabled)
    code = (
        "import sys\nfrom xarch.cli.app import run\n"
        f"code = run({arguments!r})\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert not loaded, loaded\nassert code == 0, code"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_help_names_every_command(xarch: Xarch) -> None:
    from xarch.cli.app import COMMANDS

    ended = xarch("--help")
    assert ended.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in ended.out
        assert xarch(name, "--help").code == 0


def test_every_command_takes_the_shared_options(site: Site) -> None:
    import importlib

    import click

    from xarch.cli.app import COMMANDS

    shared = {"--set", "--out", "--json", "--device", "--seed", "-v", "--plugin"}
    for name in COMMANDS:
        command = importlib.import_module(f"xarch.cli.{name}").command
        each = command.commands.values() if isinstance(command, click.Group) else [command]
        for one in each:
            options = {o for p in one.params for o in p.opts}
            assert shared <= options, (name, one.name, shared - options)


def test_one_broken_plugin_never_breaks_list(xarch: Xarch, site: Site) -> None:
    site.install("xarch-broken", "broken_import", "import nowhere_to_be_found")
    site.install("xarch-exits", "broken_exit", "raise SystemExit(7)")
    site.install("xarch-loud", "loud", "print('NOISE')\nraise OSError('x')")
    site.install("xarch-old", "old", "", requires=("xarch>=99",))
    ended = xarch("list", "--json")
    assert ended.code == 0, ended.err
    states = {p["plugin"]: p["state"] for p in ended.document["not_loaded"]}
    assert states == {"broken_import": "failed", "broken_exit": "failed", "loud": "failed", "old": "incompatible"}
    assert "kl" in {o["name"] for o in ended.document["objectives"]}
    human = xarch("list")
    assert human.code == 0
    assert "broken_import: failed: ModuleNotFoundError" in human.out
    assert "NOISE" not in human.out
