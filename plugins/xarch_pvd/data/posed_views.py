"""Folders of posed images as cameras of this family."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import Camera
from xarch_field.facts import ViewFacts
from xarch_pvd.data.datasets.fit import meeting_point
from xarch_pvd.data.datasets.open import open_posed
from xarch_pvd.data.datasets.posed import AXES, PosedImages


@dataclass(frozen=True)
class PosedViews:
    """Cameras of a folder in a field's world; images are read individually, on demand.

    Attributes:
        train, heldout: cameras.
        facts: parameters for random cameras around the same scene.
        digest: identity of the folder's camera files.
        source: the held-out views.
    """

    train: list[Camera]
    heldout: list[Camera]
    facts: ViewFacts
    digest: str
    source: PosedImages

    @property
    def pictures(self) -> int:
        """Return the number of available held-out images; a conversion needs only cameras."""
        return sum(self.source.pictured)

    def picture(self, index: int, background: tuple[float, float, float]) -> Tensor | None:
        """Return a held-out image [height * width, 3] over a background, or None if missing."""
        if not self.source.files[index].is_file():
            return None
        return self.source.picture(index, background).reshape(-1, 3)

    def mask(self, index: int) -> Tensor | None:
        """Return bool [height * width], True where a pixel of a held-out image is used; None if all are."""
        kept = self.source.mask(index)
        return None if kept is None else kept.reshape(-1)

    def notes(self, folder: str) -> tuple[str, ...]:
        """Return notes about the folder to show before a run."""
        count, there = len(self.heldout), self.pictures
        if not there:
            seen: tuple[str, ...] = (f"{folder} has no held-out images: the student is compared only with its teacher",)
        elif there < count:
            seen = (
                f"{folder} has {there} of {count} held-out images: the other views are compared only with the teacher",
            )
        else:
            seen = ()
        return (*seen, *self.source.notes)


@lru_cache(maxsize=4)
def posed_views(
    folder: str,
    world: tuple[float, ...] = (),
    world_of: str = "folder",
    downscale: int = 1,
    kind: str = "auto",
    scale: float | None = None,
) -> PosedViews:
    """Open a folder of posed images.

    Args:
        world, world_of: mapping from the folder's world to the field's, as in ViewFacts.
        downscale: integer divisor of image sizes.
        kind: format of the folder, "auto" to detect it.
        scale: scale of a field's world that torch-ngp rotated.

    Raises:
        UsageError: the format is unknown, an image and its camera differ in size, or cameras are so far from the origin
            that float32 cannot distinguish them.
    """
    train, heldout = (open_posed(folder, split=s, downscale=downscale, kind=kind) for s in ("train", "test"))
    digest = train.digest
    if world_of == "torch-ngp":
        world, world_of = _turned(folder, scale), "folder"
    if world_of == "capture":
        train, heldout = train.captured(), heldout.captured()
    train, heldout = train.in_world(world), heldout.in_world(world)
    if train.far():
        place = ", ".join(f"{v:.7g}" for v in train.c2w[:, :3, 3].mean(0).tolist())
        raise UsageError(
            f"the cameras of {folder} are centred at ({place}), too far from the origin for 32-bit numbers",
            "fields of `xarch pvd train` record the origin of their images; for others, subtract this position from "
            "all cameras",
        )
    cameras = cameras_of(train)
    facts = replace(view_facts(train, cameras), world=world, world_of=world_of)
    return PosedViews(cameras, cameras_of(heldout), facts, digest, heldout)


def _turned(folder: str, scale: float | None) -> tuple[float, ...]:
    """Return the world in which torch-ngp and PVD train."""
    if scale is None:
        raise UsageError(
            f"the field is from torch-ngp or PVD, which rotate the world of {folder} and scale it by a number that no "
            "file records",
            "set the --scale used in training: `--set data.options.world_scale=0.33` is their default",
        )
    return (*AXES[:3].flatten().tolist(), scale)


def near_world(posed: PosedImages) -> tuple[float, ...]:
    """Return the world in which to train a field, 13 numbers as in ViewFacts.

    It is that of the images, or, if cameras are far from the origin, translated to their centre.
    """
    if not posed.far():
        return ()
    x, y, z = (-v for v in posed.c2w[:, :3, 3].mean(0).tolist())
    return (1.0, 0.0, 0.0, x, 0.0, 1.0, 0.0, y, 0.0, 0.0, 1.0, z, 1.0)


def cameras_of(posed: PosedImages) -> list[Camera]:
    """Return one camera per image."""
    return [posed.camera(i) for i in range(len(posed))]


def view_facts(posed: PosedImages, cameras: list[Camera]) -> ViewFacts:
    """Describe cameras: a sphere around their common target if all look inwards, otherwise the poses themselves."""
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
