"""``xarch generate``: sample output from a student."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from xarch.cli.session import Session, define
from xarch.errors import UsageError
from xarch.printable import clean


@define("generate", uses=("set", "out", "device"))
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt", default="")
def command(session: Session, run: Path, prompt: str) -> None:
    """Generate text, or a picture, with the student in RUN. Pictures are written to --out or the current folder.

    PROMPT is for students that take text, which is shown as it is made. Pass options of the family with --set, for
    example --set tokens=100, --set chat=true.
    """
    from xarch import api

    times: list[float] = []

    def show(piece: str) -> None:
        session.quieten()
        times.append(time.perf_counter())
        if not session.json:
            click.echo(clean(piece), nl=False)

    made = api.generate(run, prompt, _options(session.sets), device=session.device or "cpu", show=show)
    if isinstance(made, bytes):
        file = (session.out or Path()) / "generated.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(made)
        made = str(file)
    document: dict[str, Any] = {"run": str(run), "prompt": prompt, "result": made}
    if len(times) > 1:
        document |= {"unit": _unit(run), "units": len(times) - 1, "seconds": round(times[-1] - times[0], 3)}
    session.emit(document, lambda console: click.echo("" if times else clean(made)))
    if len(times) > 1 and not session.json:
        rate = document["units"] / max(document["seconds"], 1e-3)
        session.note(f"{document['units']} {document['unit']}s, {rate:.1f} {document['unit']}s/s")


def _unit(run: Path) -> str:
    from xarch.planning.describe import family_of
    from xarch.registry.loader import get_registry
    from xarch.run.student_io import read_student_config, student_folder

    return family_of(get_registry(), read_student_config(student_folder(run)).family).unit


def _options(sets: tuple[str, ...]) -> dict[str, Any]:
    from xarch.config.overrides import sets_layer

    found = {}
    for given in sets_layer(sets).assignments:
        if len(given.path) != 1:
            raise UsageError(f"{given.origin}: family options are single keys, without dots", "--set OPTION=VALUE")
        found[str(given.path[0])] = given.value
    return found
