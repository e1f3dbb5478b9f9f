"""Shared by all commands: the common options, the console and the JSON document."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from xarch.cli import stdout
from xarch.cli.activity import Activity
from xarch.errors import UsageError
from xarch.printable import clean, say

if TYPE_CHECKING:
    from rich.console import Console

    from xarch.engine.events import Reporter

SHARED = ("set", "out", "device", "seed")


@dataclass
class Session:
    """One invocation of a command.

    Attributes:
        json: print one JSON document to standard output, everything else to standard error.
        verbose: show debug messages and tracebacks.
        sets, out, device, seed: the common options.
        command: the command line as typed.
        stream: receives the JSON document or the output for people.
        activity: sign of life until the command prints something.
    """

    json: bool = False
    verbose: bool = False
    sets: tuple[str, ...] = ()
    out: Path | None = None
    device: str | None = None
    seed: int | None = None
    command: str = "xarch"
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    activity: Activity | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only process that prints."""
        return os.environ.get("RANK", "0") == "0"

    @functools.cached_property
    def console(self) -> Console:
        """Console for people: standard output, or standard error with --json; silent on ranks other than 0."""
        from xarch.cli.console import make_console

        self.quieten()
        if not self.first:
            return make_console(open(os.devnull, "w", encoding="utf-8"))
        return make_console(sys.stderr if self.json else self.stream)

    def emit(self, document: Any, show: Callable[[Console], None]) -> None:
        """Print the result of the command, as a JSON document or for people."""
        self.quieten()
        if not self.json:
            show(self.console)
        elif self.first:
            stdout.write_document(document, self.stream)

    def note(self, text: str) -> None:
        """Print one line in addition to the result."""
        self.quieten()
        say(text)

    def quieten(self) -> None:
        """End the sign of life, before the command itself prints."""
        if self.activity is not None:
            self.activity.stop()

    def overrides(self, **more: Any) -> dict[str, Any]:
        """Return the options that set configuration values, by dotted key."""
        return {"runtime.device": self.device, "seed": self.seed, **more}

    def reporter(self) -> Reporter:
        """Return the reporter of a run: a live panel on a terminal, lines elsewhere."""
        from xarch.cli.ui import make_reporter

        return make_reporter(self.console)


_OPTIONS: dict[str, Callable[..., Any]] = {
    "set": functools.partial(
        click.option, "--set", "sets", multiple=True, metavar="A.B=C", help="Set a configuration value; repeatable."
    ),
    "out": functools.partial(
        click.option, "--out", type=click.Path(path_type=Path), metavar="DIR", help="Output folder."
    ),
    "device": functools.partial(click.option, "--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ..."),
    "seed": functools.partial(click.option, "--seed", type=int, metavar="N", help="Random seed."),
}


def define(name: str, *, uses: tuple[str, ...] = (), **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Define a click command whose function receives a :class:`Session` first.

    All common options are accepted everywhere, but for one that the command declares itself; those not in ``uses``
    are hidden, and using one prints a note.
    """

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def call(**given: Any) -> Any:
            names = ("sets", "out", "device", "seed", "as_json", "verbose", "plugins")
            shared = {key: given.pop(key, None) for key in names}
            return function(_start(name, uses, shared), **given)

        own = {flag for option in getattr(function, "__click_params__", ()) for flag in option.opts}
        for key in (key for key in reversed(SHARED) if f"--{key}" not in own):
            call = _OPTIONS[key](hidden=key not in uses)(call)
        call = click.option(
            "--plugin", "plugins", multiple=True, metavar="FILE.py", help="Load an additional plugin file."
        )(call)
        call = click.option("-v", "--verbose", is_flag=True, help="Show debug messages and tracebacks.")(call)
        call = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")(call)
        return click.command(name, **settings)(call)

    return wrap


def _start(name: str, uses: tuple[str, ...], shared: Mapping[str, Any]) -> Session:
    context = click.get_current_context()
    session = Session(
        json=shared["as_json"],
        verbose=shared["verbose"],
        sets=shared["sets"],
        out=shared["out"],
        device=shared["device"],
        seed=shared["seed"],
        command=context.obj if isinstance(context.obj, str) else f"xarch {name}",
    )
    if session.json:
        sys.stdout, original = sys.stderr, sys.stdout
        context.call_on_close(lambda: setattr(sys, "stdout", original))
    _log_to_stderr(logging.DEBUG if session.verbose else logging.WARNING)
    context.call_on_close(lambda: logging.captureWarnings(False))
    if session.first:
        session.activity = Activity(f"xarch {name}")
        context.call_on_close(session.quieten)
    add_plugin_files(shared["plugins"])
    for key in SHARED:
        if key not in uses and shared["sets" if key == "set" else key]:
            session.note(f"note: --{key} has no effect on `xarch {name}`")
    return session


class _CleanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return str(clean(super().format(record)))


def _log_to_stderr(level: int) -> None:
    """Send log records and Python's warnings to standard error, cleaned."""
    handler = logging.StreamHandler()
    handler.setFormatter(_CleanFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)


def add_plugin_files(files: tuple[str, ...]) -> None:
    """Load these plugin files as well, in this process and in child processes.

    Raises:
        UsageError: a file does not exist.
    """
    if not files:
        return
    from xarch.registry.discover import FILES_VARIABLE, files_from_environment
    from xarch.registry.loader import get_registry

    missing = [f for f in files if not Path(f).is_file()]
    if missing:
        raise UsageError(f"plugin file {missing[0]} does not exist")
    known = files_from_environment()
    added = [str(Path(f).resolve()) for f in files]
    os.environ[FILES_VARIABLE] = os.pathsep.join(dict.fromkeys([*known, *added]))
    get_registry.cache_clear()
