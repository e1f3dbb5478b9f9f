"""What a user sees when something is wrong: kind, what, hint, exit code; the same as JSON."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from tests.cli.cli_process import Xarch
from tests.registry.fake_dist import Site, registering
from xarch.errors import (
    DivergedError,
    Interrupted,
    OutOfMemoryError,
    ParityError,
    PlanError,
    PluginError,
    QualityError,
    UsageError,
)

RAISING = """
import signal
import click
from xarch import hookimpl
from xarch import errors

@hookimpl
def xarch_commands(group):
    @group.command("go")
    @click.argument("kind")
    def go(kind):
        if kind == "bug":
            raise ZeroDivisionError("planted")
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "abort":
            raise click.Abort
        if kind == "term":
            signal.raise_signal(signal.SIGTERM)
        if kind == "full":
            raise OSError(28, "No space left on device", "/there")
        if kind == "cause":
            try:
                raise LookupError("deep inside")
            except LookupError as e:
                raise errors.PluginError("plugin x broke", "`-v` shows the plugin's traceback") from e
        raise getattr(errors, kind)("what happened", "what to do")
"""


@pytest.fixture
def raising(site: Site) -> None:
    site.install("xarch-raising", "raising", RAISING)


def run(site: Site, *arguments: str) -> int:
    """In this process: fast, and every branch of the error handling counts."""
    from xarch.cli.app import run

    return run(list(arguments))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2),
        (PlanError, 3),
        (PluginError, 4),
        (DivergedError, 5),
        (ParityError, 6),
        (QualityError, 7),
        (OutOfMemoryError, 75),
        (Interrupted, 130),
    ],
)
def test_exit_codes(site: Site, raising: None, capsys: pytest.CaptureFixture[str], error: type, code: int) -> None:
    assert run(site, "raising", "go", error.__name__) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    again = ", then repeat `xarch raising go OutOfMemoryError`" if error is OutOfMemoryError else ""
    assert shown.err == f"error ({error.kind}): what happened\nhelp: what to do{again}\n"


@pytest.mark.parametrize("kind", ["interrupt", "abort"])
def test_interrupts(site: Site, raising: None, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    assert run(site, "raising", "go", kind) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_signal_ends_any_command_with_how_to_repeat_it(
    site: Site, raising: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(site, "raising", "go", "term") == 130
    shown = "error (interrupted): stopped by SIGTERM\nhelp: to start again: xarch raising go term"
    assert capsys.readouterr().err.strip() == shown


def test_a_full_disk_ends_any_command_with_how_to_repeat_it(
    site: Site, raising: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(site, "raising", "go", "full") == 130
    shown = "error (storage): No space left on device: /there (errno 28, ENOSPC)"
    hint = "help: free space on that disk, then repeat `xarch raising go full`"
    assert capsys.readouterr().err.strip() == f"{shown}\n{hint}"


def test_a_full_disk_under_the_terminals_file_is_no_second_failure(
    site: Site, raising: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(click, "echo", full)
    assert run(site, "raising", "go", "full") == 130


def test_a_bug_leaves_a_traceback_in_a_file(site: Site, raising: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(site, "raising", "go", "bug") == 1
    err = capsys.readouterr().err
    assert "error (internal): xarch failed unexpectedly: ZeroDivisionError: planted" in err
    assert "Traceback" not in err
    from pathlib import Path

    file = Path(err.split("traceback in ")[1].strip())
    assert "ZeroDivisionError: planted" in file.read_text()
    assert file.is_relative_to(site.folder.parent)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["lst"], "unknown command 'lst'; did you mean 'list'?", "xarch --help"),
        (["qqq"], "unknown command 'qqq'", "xarch --help"),
        (["--nope"], "No such option", "xarch --help"),
        (["list", "parts"], "'parts' is not one of", "xarch list --help"),
        (["convert", "--nope"], "No such option", "xarch convert --help"),
        (["export"], "Missing argument 'RUN'", "xarch export --help"),
        (["plan"], "does not specify what to convert: --teacher SOURCE:REF and --to TARGET missing", "CONFIG"),
        (["plan", "--teacher", "hf:x"], "does not specify what to convert: --to TARGET missing", "these options"),
        (["plan", "nope"], "there is no method or recipe 'nope'", "known: "),
        (["plan", "nope.yaml"], "nope.yaml does not exist", None),
        (["plan", "nope.json"], "nope.json does not exist", None),
        (["convert", "--resume"], "--resume needs a run folder", "--out RUN"),
        (["convert", "--resume", "--out", "x"], "x contains no run to resume", "CONFIG"),
        (["list", "--plugin", "nope.py"], "plugin file nope.py does not exist", None),
        (["inspect", "nope"], "'nope' is neither a file, a folder nor a registered name", "SOURCE:REF"),
        (["inspect", "txet:x"], "'txet' is neither a source of teachers nor a provider of data", "zoo"),
        (["inspect", "gradent"], "did you mean 'gradient'?", "SOURCE:REF"),
        (["plugins", "disable", "cor"], "unknown plugin 'cor'; did you mean 'core'?", "known: core"),
        (["plugins", "disable", "core"], "the core plugin cannot be disabled", None),
        (["bench", "nope"], "nope does not exist", "run folder"),
        (["new", "run", "nope"], "there is no method or recipe 'nope'", "known"),
    ],
)
def test_usage_errors(
    site: Site, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, hint: str | None
) -> None:
    assert run(site, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err.splitlines()[0]
    assert hint is None or hint in shown.err.split("help: ")[1]


def test_errors_as_json(xarch: Xarch, site: Site, raising: None) -> None:
    for arguments in (["plan", "nope", "--json"], ["lst", "--json"], ["list", "x", "--json"]):
        ended = xarch(*arguments)
        error = ended.document["error"]
        assert (ended.code, error["exit_code"], error["kind"]) == (2, 2, "usage")
        assert error["what"] in ended.err


def test_the_traceback_of_a_plugin_needs_verbose(site: Site, raising: None, capsys: pytest.CaptureFixture[str]) -> None:
    from xarch.cli.app import cli
    from xarch.cli.failure import end
    from xarch.errors import XarchError

    with pytest.raises(XarchError) as caught:
        cli.main(["raising", "go", "cause"], standalone_mode=False)
    assert end(caught.value, as_json=False, verbose=False) == 4
    quiet = capsys.readouterr().err
    assert "deep inside" not in quiet
    assert "`-v` shows" in quiet
    assert end(caught.value, as_json=False, verbose=True) == 4
    loud = capsys.readouterr().err
    assert "LookupError: deep inside" in loud
    assert "Traceback" in loud
    assert "`-v` shows" not in loud


def test_a_strict_run_shows_the_traceback_of_a_broken_plugin(xarch: Xarch, site: Site) -> None:
    site.install("aaa-broken", "broken", "raise OSError('disk on fire')")
    ended = xarch("list", "-v", XARCH_STRICT_PLUGINS="1")
    assert ended.code == 4
    assert "OSError: disk on fire" in ended.err
    assert "Traceback" in ended.err


def test_json_keeps_prints_of_plugins_off_standard_output(xarch: Xarch, site: Site) -> None:
    code = registering("import os; print('PRINTED'); os.write(1, b'WRITTEN')")
    site.install("xarch-loud", "loud", code)
    ended = xarch("list", "--json")
    assert ended.code == 0
    assert "pairs" in ended.document
    assert "WRITTEN" in ended.err


def test_an_option_without_effect_is_noted(xarch: Xarch) -> None:
    ended = xarch("list", "objectives", "--seed", "3", "--json")
    assert ended.code == 0
    assert "note: --seed has no effect on `xarch list`" in ended.err
    assert ended.document["objectives"]


def test_a_reader_that_stops_reading_is_no_error(site: Site) -> None:
    command = f"{sys.executable} -m xarch list | head -n 1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "0"
    assert "Traceback" not in ended.stderr
