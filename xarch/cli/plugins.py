"""``xarch plugins``: list, check, disable and enable plugins."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from typing import Any

import click

from xarch.cli.session import Session, define
from xarch.errors import PluginError, UsageError
from xarch.registry.discover import discover, files_from_environment
from xarch.registry.loader import disable, enable, environment_disabled, get_registry, stored_disabled
from xarch.registry.registry import Registry

CHECK_SECONDS = 60


class _ListByDefault(click.Group):
    """Runs ``xarch plugins list`` if no subcommand is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        wants_list = not args or (args[0].startswith("-") and args[0] not in ("-h", "--help"))
        return super().parse_args(ctx, ["list", *args] if wants_list else args)


@click.group("plugins", cls=_ListByDefault)
def command() -> None:
    """List, check, disable and enable plugins."""


def rows(registry: Registry) -> list[dict[str, Any]]:
    """Return every plugin as plain data."""
    return [asdict(p) for p in registry.plugins()]


def cells(row: dict[str, Any]) -> list[str]:
    """Return one row of the table."""
    ships = f"{row['distribution']} {row['version']}".strip() or row["origin"]
    return [row["name"], row["state"], ships, str(row["declared"]), row["detail"]]


@define("list")
def show(session: Session) -> None:
    """List every plugin with its state and the reason for it."""
    found = rows(get_registry())

    def human(console: Any) -> None:
        from xarch.cli.tables import table

        console.print(table(["plugin", "state", "from", "declares", "detail"], [cells(r) for r in found]))
        if session.verbose:
            for row in found:
                console.print(row["traceback"], markup=False, end="") if row["traceback"] else None

    session.emit({"plugins": found}, human)


@define("disable")
@click.argument("name")
def switch_off(session: Session, name: str) -> None:
    """Disable the plugin NAME: it is no longer imported."""
    _known(name)
    disable(name)
    _tell(session, f"{name} is disabled; `xarch plugins enable {name}` enables it again")


@define("enable")
@click.argument("name")
def switch_on(session: Session, name: str) -> None:
    """Enable the plugin NAME."""
    if name not in stored_disabled():
        _known(name)
    enable(name)
    still = name in environment_disabled()
    _tell(session, f"{name} is enabled" + (", but XARCH_DISABLE_PLUGINS still lists it" if still else ""))


@define("check")
@click.argument("name", required=False)
@click.option("--timeout", default=CHECK_SECONDS, show_default=True, help="Time limit per plugin in seconds.")
def check(session: Session, name: str | None, timeout: int) -> None:
    """Load each plugin (or NAME, a plugin or a file) in a separate process and check its declarations."""
    from xarch.cli.tables import table
    from xarch.registry.check import check_plugin

    names = [name] if name else [c.name for c in discover(files_from_environment())]
    if name and not name.endswith(".py"):
        _known(name)
    reports = [check_plugin(n, timeout=timeout) for n in names]

    def human(console: Any) -> None:
        for report in reports:
            console.print(report.plugin, style="bold")
            lines = [["ok" if f.ok else "failed", f.check, f.detail] for f in report.findings]
            console.print(table(["", "check", "detail"], lines))

    session.emit({"plugins": [asdict(r) | {"ok": r.ok} for r in reports]}, human)
    wrong = [r.plugin for r in reports if not r.ok]
    if wrong:
        raise click.exceptions.Exit(PluginError.exit_code)


def _tell(session: Session, text: str) -> None:
    session.emit({"disabled": stored_disabled()}, lambda console: console.print(text, markup=False))


def _known(name: str) -> None:
    known = [c.name for c in discover(files_from_environment())]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown plugin {name!r}{guess}", f"known: {', '.join(known)}")


for each in (show, switch_off, switch_on, check):
    command.add_command(each)
