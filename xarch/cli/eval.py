"""``xarch eval``: re-evaluate the student of a run."""

from __future__ import annotations

from pathlib import Path

import click

from xarch.cli.session import Session, define


@define("eval", uses=("set",))
@click.argument("run", type=click.Path(path_type=Path))
def command(session: Session, run: Path) -> None:
    """Re-evaluate the student in RUN against its teacher, check the gates, and rewrite eval.json and the report.

    `--set evaluate.X=…` changes how, e.g. --set evaluate.samples=64."""
    from xarch import api
    from xarch.cli.ui import watched
    from xarch.cli.verdict import run_document, show_verdict

    with watched(session.reporter()) as reporter:
        api.evaluate(run, reporter, sets=session.sets)
    document = run_document(run)
    session.emit(document, lambda console: show_verdict(document, console))
