"""Cut the photographs that scikit-image ships into tiles: pictures without labels.
python tiles.py FOLDER [--side 96]"""

import argparse
from pathlib import Path

from PIL import Image
from skimage import data

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina", "cat")

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path)
parser.add_argument("--side", type=int, default=96, help="pixels; tiles do not overlap")
said = parser.parse_args()
said.folder.mkdir(parents=True, exist_ok=True)
count = 0
for name in PHOTOS:
    photo = Image.fromarray(getattr(data, name)()[..., :3])
    for top in range(0, photo.height - said.side + 1, said.side):
        for left in range(0, photo.width - said.side + 1, said.side):
            tile = photo.crop((left, top, left + said.side, top + said.side))
            tile.save(said.folder / f"{name}-{top:04d}-{left:04d}.png")
            count += 1
print(f"{count} tiles in {said.folder}")
