"""Shrink the drawings of Debian's ``openclipart-png`` for ``deit_lt_openclipart.yaml``: 22 classes with a natural long
tail, from some 2,000 pictures to 3.

Links to other classes are left out, so no picture is in both parts. Three tenths of every class, at least one picture,
are the test part.

    python benchmarks/quality/openclipart.py /usr/share/openclipart/png benchmarks/out/openclipart
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from xarch import SkipSample
from xarch_pictures.decoding import decode

SIDE = 32
TEST = 0.3


def shrunk(data: bytes) -> Image.Image:
    """Return a picture centred on a white square of :data:`SIDE` pixels.

    Raises:
        SkipSample: it cannot be read.
    """
    picture = decode(data, 3)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square


def prepare(root: Path, out: Path) -> dict[str, tuple[int, int]]:
    """Write ``out/train/CLASS`` and ``out/test/CLASS``; return class -> pictures of both parts."""
    counts = {}
    generator = np.random.default_rng(0)
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        small = []
        for path in sorted(p for p in folder.rglob("*.png") if not p.is_symlink()):
            try:
                small.append(shrunk(path.read_bytes()))
            except SkipSample as e:
                print(f"{path}: {e}", file=sys.stderr)
        order = generator.permutation(len(small))
        tested = max(round(TEST * len(small)), 1)
        for part, chosen in (("test", order[:tested]), ("train", order[tested:])):
            (out / part / folder.name).mkdir(parents=True, exist_ok=True)
            for number in chosen:
                small[number].save(out / part / folder.name / f"{number:04d}.png")
        counts[folder.name] = (len(order) - tested, tested)
    return counts


if __name__ == "__main__":
    for name, (train, test) in prepare(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{name}: {train} for training, {test} held out")
