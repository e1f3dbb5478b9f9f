"""``xarch report``: rebuild the report of a run."""

from __future__ import annotations

from pathlib import Path

import click

from xarch.cli.session import Session, define


@define("report", uses=("set",))
@click.argument("run", type=click.Path(path_type=Path))
def command(session: Session, run: Path) -> None:
    """Rebuild report.html, report.md and the model card of RUN from the files in its folder.

    `--set report.X=…` changes what they say beside the figures: title, limits, language, base_model."""
    from xarch import api

    page = api.report(run, sets=session.sets)
    document = {"run": str(run), "report": str(page), "markdown": str(page.with_suffix(".md"))}
    session.emit(document, lambda console: console.print(str(page), markup=False, soft_wrap=True))
