"""``xarch pvd save``: write a field to a file of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("field", metavar="FIELD_OR_RUN")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="file to write")
@click.option("--format", "named", help="xarch, torch-ngp, voxels, svox2 or mesh; by default from the suffix")
@click.option(
    "--resolution", type=click.IntRange(2, 1024), help="samples along the longest side of voxels or mesh [default: 128]"
)
@click.option(
    "--degree", type=click.IntRange(1, 4), default=2, show_default=True, help="harmonics degree of baked colours"
)
@click.option("--level", type=float, default=20.0, show_default=True, help="density at the surface of a mesh")
@click.option("--linear", is_flag=True, help="voxels: store density, not its logarithm")
@click.option("--full", is_flag=True, help="voxels: store float32, not float16")
@click.option("--no-check", is_flag=True, help="do not read the file back to compare renders")
@click.option("--edits", default="", help="edits to apply first: a YAML file, or the list itself")
@click.option("--allow-pickle", is_flag=True, help="also read .pth, .th and .ckpt")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document to stdout")
def save(
    field: str,
    out: Path,
    named: str | None,
    resolution: int | None,
    degree: int,
    level: float,
    linear: bool,
    full: bool,
    no_check: bool,
    edits: str,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Write a field for another program.

    FIELD_OR_RUN is a file, `demo` or a run folder. The suffix of OUT selects a PVD or torch-ngp checkpoint (.pth),
    voxels (.npz), a mesh (.ply) or xarch's own format (.safetensors). Fields that the format does not support are
    baked into voxels first.
    """

    from xarch import make_console, write_document
    from xarch_pvd.export.saving import SavingOptions, format_of
    from xarch_pvd.export.saving import save as write
    from xarch_pvd.source.reference import open_field
    from xarch_pvd.source.source import kind_of

    kind = format_of(out, named)
    options = SavingOptions(resolution, degree, level, not full, linear, not no_check)
    console = make_console()
    with console.status(f"writing {out}"):
        opened = open_field(field, allow_pickle=allow_pickle, edits=edits)
        found = write(opened, out, kind, options)
    if as_json:
        write_document({"file": str(out), **found})
    for line in lines(found, kind_of(opened.record), out):
        console.print(line, soft_wrap=True)


def lines(found: dict[str, Any], kind: str, out: Path) -> list[str]:
    """Describe a written file."""
    size = f"{found['bytes'] / 1e6:.1f} MB"
    if found["format"] == "mesh":
        return [f"{out}: mesh, {found['vertices']} vertices, {found['faces']} faces, {size}"]
    told = [f"{out}: {found['format']}, {found['arch']}, {size}"]
    if "psnr_baked" in found:
        shape = " x ".join(map(str, found["resolution"]))
        told.append(f"  baked from {kind} into {shape} voxels: {found['psnr_baked']:.1f} dB vs the field")
    if "psnr_read_again" in found:
        told.append(f"  read back: {found['psnr_read_again']:.1f} dB vs the written field")
    return told
