"""``xarch new``: create a working plugin or configuration."""

from __future__ import annotations

from pathlib import Path

import click

from xarch.cli.session import Session, define
from xarch.errors import UsageError


@click.group("new")
def command() -> None:
    """Create a plugin or a run configuration from a template."""


@define("plugin", uses=("out",))
@click.argument("name")
@click.option("--kind", default="target", show_default=True, metavar="KIND", help="See below.")
@click.option("--family", default="", help="Family of a target; default: the only one with a template.")
def plugin(session: Session, name: str, kind: str, family: str) -> None:
    """Create a plugin package called NAME with passing tests, in --out or ./xarch-NAME.

    KIND is any registered kind: target, source, family, objective, connector, batch-step, data, metric, stage, method,
    recipe, optimiser, wrapper, schedule, export, report, or teacher. A family package includes a source, a target,
    data, a metric and a method.
    """
    from xarch.testing.scaffold import write_plugin

    folder = session.out or Path(f"xarch-{name.removeprefix('xarch-')}")
    write_plugin(name, folder, kind=kind, family=family)
    commands = [f"pip install -e {folder}", f"python -m pytest {folder}", "xarch plugins list"]
    document = {"plugin": name, "kind": kind, "folder": str(folder), "next": commands}
    session.emit(document, lambda c: c.print("\n".join([f"written to {folder}", *commands]), markup=False))


@define("run", uses=("set", "out", "seed", "device"))
@click.argument("recipe", required=False)
@click.option("--file", "name", default="run.yaml", show_default=True, help="File name.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def run(session: Session, recipe: str | None, name: str, force: bool) -> None:
    """Write a commented configuration with the values of RECIPE to --out or the current folder."""
    from xarch.config.load import load_config
    from xarch.config.write import render
    from xarch.files.atomic import write_text
    from xarch.registry.loader import get_registry

    known = [s.name for kind in ("recipe", "method") for s in get_registry().specs(kind)]
    loaded = load_config(recipe, sets=session.sets, overrides=session.overrides())
    file = (session.out or Path()) / name
    if file.exists() and not force:
        raise UsageError(f"{file} exists", "use --force to overwrite it, or --file NAME for another name")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, render(loaded, recipes=known))
    commands = [f"xarch plan {file}", f"xarch convert {file} --tiny", f"xarch convert {file}"]
    document = {"file": str(file), "recipe": recipe, "next": commands}
    session.emit(document, lambda c: c.print("\n".join([f"written to {file}", *commands]), markup=False))


command.add_command(plugin)
command.add_command(run)
