"""Folders of posed pictures as cameras of this family."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from xarch_field import Camera
from xarch_field.facts import ViewFacts
from xarch_pvd.data.datasets.fit import meeting_point
from xarch_pvd.data.datasets.open import open_posed
from xarch_pvd.data.datasets.posed import PosedImages


@dataclass(frozen=True)
class PosedViews:
    """Cameras of a folder; pictures are read one by one and only when asked for.

    Attributes:
        train, heldout: cameras.
        facts: what random cameras around the same scene look like.
        digest: identity of the folder's camera files.
    """

    train: list[Camera]
    heldout: list[Camera]
    facts: ViewFacts
    digest: str
    source: PosedImages

    @property
    def pictured(self) -> bool:
        """Whether held-out pictures are there; a conversion needs none, cameras are enough."""
        return any(file.is_file() for file in self.source.files)

    def picture(self, index: int, background: tuple[float, float, float]) -> Tensor:
        """Held-out picture [height * width, 3] over a background."""
        return self.source.picture(index, background).reshape(-1, 3)


@lru_cache(maxsize=4)
def posed_views(folder: str) -> PosedViews:
    """Open a folder.

    Raises:
        UsageError: no known format.
    """
    train, heldout = open_posed(folder, split="train"), open_posed(folder, split="test")
    cameras = cameras_of(train)
    return PosedViews(cameras, cameras_of(heldout), view_facts(train, cameras), train.digest, heldout)


def cameras_of(posed: PosedImages) -> list[Camera]:
    """One camera a picture."""
    return [posed.camera(i) for i in range(len(posed))]


def view_facts(posed: PosedImages, cameras: list[Camera]) -> ViewFacts:
    """Cameras that all look inwards become a sphere around the point they look at; others are kept as they are."""
    c2w = torch.stack([c.c2w[:3] for c in cameras])
    places, ahead = c2w[:, :, 3], -c2w[:, :, 2]
    first = cameras[0]
    common = ViewFacts(width=first.width, height=first.height, focal=first.fx / first.width)
    target = meeting_point(posed)[0].float()
    inward = torch.nn.functional.cosine_similarity(ahead, target - places, dim=-1)
    if float(inward.min()) > math.cos(math.pi / 12):
        distance = (places - target).norm(dim=-1)
        return replace(
            common,
            radius=(float(distance.min()), float(distance.max())),
            target=(float(target[0]), float(target[1]), float(target[2])),
        )
    return replace(common, poses=tuple(tuple(row) for row in c2w.reshape(len(cameras), 12).tolist()))
