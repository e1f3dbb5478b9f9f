"""``xarch pvd edit``: write an edited field."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("field", metavar="FIELD_OR_RUN")
@click.option("--edits", required=True, help="a YAML file, or the list itself: [{erase: {box: [[..], [..]]}}]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help=".safetensors to write")
@click.option("--allow-pickle", is_flag=True, help="also read .pth, .th and .ckpt")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document to stdout")
def edit(field: str, edits: str, out: Path, allow_pickle: bool, as_json: bool) -> None:
    """Erase parts of a field, crop it, transform it, or compose it with another.

    \b
    - erase:   {box: [[x0, y0, z0], [x1, y1, z1]]}      or {sphere: {centre: [x, y, z], radius: r}}
    - crop:    the same; the field's box shrinks to it
    - affine:  {scale: 0.5, rotate: {z: 30}, translate: [x, y, z], about: [x, y, z]}      or {matrix: 3 x 4}
    - compose: {with: other.safetensors, mode: sum or max, edits: [...]}

    OUT stores the complete fields and the list of edits: nothing is lost, and OUT can be the teacher of any conversion.
    """

    from xarch import make_console, write_document
    from xarch_pvd.export.saving import format_of, save
    from xarch_pvd.source.reference import open_field
    from xarch_pvd.source.source import kind_of

    format_of(out, "xarch")
    console = make_console()
    with console.status(f"writing {out}"):
        before = open_field(field, allow_pickle=allow_pickle)
        after = open_field(field, allow_pickle=allow_pickle, edits=edits)
        save(after, out, "xarch")
    record, grid = after.record, after.record.occupancy
    assert grid is not None
    box = [[round(v, 6) for v in corner] for corner in (record.aabb[:3], record.aabb[3:])]
    share = float(grid.float().mean())
    if as_json:
        names = record.details["edits"]
        write_document({"file": str(out), "edits": names, "aabb": box, "warp": record.warp, "occupied": share})
    console.print(f"{out}: {kind_of(record)}, {out.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
    console.print(f"  box       {_box(before.record.aabb)} -> {_box(record.aabb)}", soft_wrap=True)
    console.print(f"  occupied  {share:.1%} of the box", soft_wrap=True)
    console.print(f"look  xarch pvd render {out} --out picture.png", soft_wrap=True)
    console.print(f"next  xarch convert --teacher field:{out} --to vm --data views:teacher", soft_wrap=True)


def _box(aabb: tuple[float, ...]) -> str:
    low, high = (", ".join(f"{v:.3g}" for v in corner) for corner in (aabb[:3], aabb[3:]))
    return f"[{low}] to [{high}]"
