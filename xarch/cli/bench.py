"""``xarch bench``: latency of exported graphs."""

from __future__ import annotations

from pathlib import Path

import click

from xarch.cli.session import Session, define
from xarch.errors import UsageError


@define("bench", uses=("out", "set"))
@click.argument("path", type=click.Path(path_type=Path), metavar="RUN|MODEL.onnx")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default: the cores that other work leaves free."
)
def command(session: Session, path: Path, threads: int | None) -> None:
    """Measure every export of a run, or one ONNX file. With --out, also write the figures to DIR/bench.json.

    --threads N is short for --set runtime.threads=N."""
    from xarch import api
    from xarch.cli.bench_view import show_bench
    from xarch.cli.ui import watched
    from xarch.files.atomic import write_json

    if not path.exists():
        raise UsageError(f"{path} does not exist", "give a run folder or an .onnx file")
    with watched(session.reporter()) as reporter:
        document = api.bench(path, reporter, threads=threads, sets=session.sets)
    if session.out is not None:
        session.out.mkdir(parents=True, exist_ok=True)
        write_json(session.out / "bench.json", document)
    session.emit(document, lambda console: show_bench(document, console))
