"""``xarch study``: conversions for arms × seeds, compared in one table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xarch.cli.session import Session, define

if TYPE_CHECKING:
    from rich.console import Console

    from xarch.run.study.conduct import Progress

LINE_SECONDS = 60.0


@define("study", uses=("out",))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Number of parallel runs; overrides the file.")
@click.option("--retry", is_flag=True, help="Also repeat failed runs.")
@click.option("--arm", "arms", multiple=True, metavar="NAME", help="Run only this arm; repeatable.")
@click.option("--seed", "seeds", type=int, multiple=True, metavar="N", help="Run only this seed; repeatable.")
def command(
    session: Session, file: Path, jobs: int | None, retry: bool, arms: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    """Run the conversions described in FILE, for arms × seeds, and compare them.

    With the same --out, a second call keeps finished runs and resumes interrupted ones. OUT contains study.json,
    report.html, and the folder and configuration file of each run. FILE may extend another one: `extends: OTHER.yaml`.
    """
    from xarch.run.study.conduct import StudyFailed, conduct

    with _watching(session.console) as watch:
        out = session.out
        try:
            found = conduct(file, out, jobs=jobs, retry=retry, only_arms=arms, only_seeds=seeds, watch=watch)
        except StudyFailed as e:
            found = e.document
            session.emit({**found, "error": {"what": e.what, "exit_code": e.exit_code}}, lambda c: show(found, c))
            if not session.json:
                raise
            from xarch.cli.failure import show_error

            show_error(e, verbose=session.verbose)
            raise click.exceptions.Exit(e.exit_code) from e
    session.emit(found, lambda console: show(found, console))


def show(study: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    from xarch.cli.tables import table
    from xarch.report.study import HEAD, rows

    facts = study["facts"]
    for metric, about in facts["metrics"].items():
        unit = f" ({about['unit']})" if about["unit"] else ""
        console.print(f"\n{metric}{unit}", markup=False, style="bold")
        body = [[cell.text for cell in row] for row in rows(metric, about, facts)]
        console.print(table(HEAD, body, right=HEAD[1:]))


@contextlib.contextmanager
def _watching(console: Console) -> Iterator[Callable[[str, Progress], None]]:
    """Print one line per event and the progress of the study: below the lines on a terminal, periodically elsewhere."""
    from rich.text import Text

    live = console.is_terminal and not console.is_dumb_terminal
    status = console.status("") if live else contextlib.nullcontext()
    printed = time.monotonic()
    with status as shown:

        def watch(event: str, progress: Progress) -> None:
            nonlocal printed
            if event:
                console.print(event, markup=False, highlight=False)
            if shown is not None:
                shown.update(Text(str(progress)))
            elif event or time.monotonic() - printed > LINE_SECONDS:
                console.print(str(progress), markup=False, highlight=False, style="dim")
                printed = time.monotonic()

        yield watch
