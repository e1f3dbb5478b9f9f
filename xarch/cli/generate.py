"""``xarch generate``: sample output from a student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xarch.cli.session import Session, define
from xarch.errors import UsageError


@define("generate", uses=("set", "out", "device"))
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt", default="")
def command(session: Session, run: Path, prompt: str) -> None:
    """Generate text, or a picture, with the student in RUN. Pictures are written to --out or the current folder.

    PROMPT is for students that take text. Pass options of the family with --set, for example --set tokens=100.
    """
    from xarch import api

    made = api.generate(run, prompt, _options(session.sets), device=session.device or "cpu")
    if isinstance(made, bytes):
        file = (session.out or Path()) / "generated.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(made)
        made = str(file)
    document = {"run": str(run), "prompt": prompt, "result": made}
    session.emit(document, lambda console: console.print(str(made), markup=False, soft_wrap=True))


def _options(sets: tuple[str, ...]) -> dict[str, Any]:
    from xarch.config.overrides import sets_layer

    found = {}
    for given in sets_layer(sets).assignments:
        if len(given.path) != 1:
            raise UsageError(f"{given.origin}: family options are single keys, without dots", "--set OPTION=VALUE")
        found[str(given.path[0])] = given.value
    return found
