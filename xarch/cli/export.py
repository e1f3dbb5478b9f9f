"""``xarch export``: export the student of a run to ONNX for one profile."""

from __future__ import annotations

from pathlib import Path

import click

from xarch.cli.completion import names
from xarch.cli.session import Session, define


@define("export", uses=("set",))
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--profile",
    default="cpu",
    show_default=True,
    shell_complete=names("export"),
    help="One of `xarch list profiles`.",
)
def command(session: Session, run: Path, profile: str) -> None:
    """Export the student in RUN to RUN/export/PROFILE; a graph that fails the parity gate is rejected (exit code 6).

    `--set export.options.X=…` changes an export option of the target; parity is checked again."""
    from xarch import api
    from xarch.cli.ui import watched
    from xarch.cli.verdict import run_document, show_verdict
    from xarch.registry.loader import get_registry

    get_registry().get("export", profile)
    with watched(session.reporter()) as reporter:
        api.export(run, profile, reporter, sets=session.sets)
    document = run_document(run)
    session.emit(document, lambda console: show_verdict(document, console))
