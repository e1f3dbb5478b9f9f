"""``xarch pvd train``: train a teacher from posed images."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="file to write")
@click.option("--arch", default="hash", show_default=True, help="hash, mlp, vm, cp, hash+vm, tensors")
@click.option("--preset", default="small", show_default=True, help="small, paper; mlp: npu-mlp, vm: npu-vm")
@click.option("--steps", type=click.IntRange(1), default=1500, show_default=True, help="optimiser steps")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--downscale", type=click.IntRange(1), default=1, show_default=True, help="divide the size of images by this"
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["auto", "blender", "colmap", "llff", "nsvf"]),
    default="auto",
    show_default=True,
    help="format of the folder",
)
def train(folder: str, out: Path, arch: str, preset: str, steps: int, seed: int, downscale: int, kind: str) -> None:
    """Train a field from posed images (Blender, LLFF, COLMAP or NSVF folder); use it as --teacher field:OUT."""

    from xarch import make_console, progress_bar
    from xarch_pvd.train.train import train_from_pictures

    console = make_console()
    with progress_bar(console, transient=False) as bar:
        task = bar.add_task(f"training {arch}", total=steps)

        def show(step: int, _: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"training {arch}, loss {loss:.5f}")

        spent = train_from_pictures(
            folder,
            arch=arch,
            options={"preset": preset},
            steps=steps,
            seed=seed,
            out=out,
            downscale=downscale,
            kind=kind,
            progress=show,
        )
    console.print(f"{out}: {steps} steps in {spent:.0f} CPU seconds")
    options = f" --set data.options.downscale={downscale}" if downscale > 1 else ""
    options += f" --set data.options.format={kind}" if kind != "auto" else ""
    console.print(f"next  xarch convert --teacher field:{out} --to vm --data views:{folder}{options}", soft_wrap=True)
