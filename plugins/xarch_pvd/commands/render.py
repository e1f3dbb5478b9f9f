"""``xarch pvd render``: an image or a turntable animation of a field."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("field", metavar="FIELD_OR_RUN")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help=".png, or .gif for a turntable"
)
@click.option("--size", type=click.IntRange(1, 4096), help="pixels along the longer side [default: the field's own]")
@click.option("--azimuth", type=float, default=45.0, show_default=True, help="degrees from +x towards +y")
@click.option("--elevation", type=click.FloatRange(-89, 89), default=25.0, show_default=True, help="degrees")
@click.option("--radius", type=click.FloatRange(0, min_open=True), help="camera distance [default: the field's own]")
@click.option("--frames", type=click.IntRange(2, 360), default=24, show_default=True, help="frames of a turntable")
@click.option("--samples", type=click.IntRange(8, 2048), default=192, show_default=True, help="steps per ray")
@click.option("--edits", default="", help="edits to apply first: a YAML file, or the list itself")
@click.option("--allow-pickle", is_flag=True, help="also read .pth, .th and .ckpt")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document to stdout")
def render(
    field: str,
    out: Path,
    size: int | None,
    azimuth: float,
    elevation: float,
    radius: float | None,
    frames: int,
    samples: int,
    edits: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Render a field: FIELD_OR_RUN is a file, `demo` or a run folder."""

    from xarch import make_console, progress_bar, write_document
    from xarch_field.turntable import checked_out, orbit, pictures, write_pictures
    from xarch_pvd.source.reference import field_of, open_field

    turn = checked_out(out)
    opened = open_field(field, allow_pickle=allow_pickle, edits=edits)
    cameras = orbit(opened.views, azimuth, elevation, count=frames if turn else 1, size=size, radius=radius)
    console = make_console()
    with progress_bar(console) as bar:
        task = bar.add_task("rendering", total=len(cameras))
        seen = list(bar.track(pictures(field_of(opened.record), cameras, samples), task_id=task, total=len(cameras)))
    write_pictures(seen, out)
    if as_json:
        height, width = seen[0].shape[:2]
        write_document({"file": str(out), "width": width, "height": height, "frames": len(seen)})
    console.print(f"{out}: {len(seen)} pictures" if turn else str(out), soft_wrap=True)
