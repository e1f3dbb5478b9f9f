"""Folders of posed pictures as cameras of this family."""

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
    """Cameras of a folder in a field's world; pictures are read one by one and only when asked for.

    Attributes:
        train, heldout: cameras.
        facts: what random cameras around the same scene look like.
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
        """Held-out pictures that are there; a conversion needs none, cameras are enough."""
        return sum(self.source.pictured)

    def picture(self, index: int, background: tuple[float, float, float]) -> Tensor | None:
        """Held-out picture [height * width, 3] over a background, or None where it is not there."""
        if not self.source.files[index].is_file():
            return None
        return self.source.picture(index, background).reshape(-1, 3)

    def mask(self, index: int) -> Tensor | None:
        """bool [height * width], True where a pixel of a held-out picture counts; None where all do."""
        kept = self.source.mask(index)
        return None if kept is None else kept.reshape(-1)

    def notes(self, folder: str) -> tuple[str, ...]:
        """What a person should know of the folder before a run."""
        count, there = len(self.heldout), self.pictures
        if not there:
            seen: tuple[str, ...] = (f"{folder} has no held-out picture: a student is compared with its teacher only",)
        elif there < count:
            seen = (
                f"{folder} has {there} of {count} held-out pictures: the others are compared with the teacher only",
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
    """Open a folder.

    Args:
        world, world_of: how its places reach the world of the field, as in ViewFacts.
        downscale: whole number that sizes are divided by.
        kind: of folder, "auto" to tell it from the files.
        scale: of a field's world that torch-ngp turned.

    Raises:
        UsageError: no known format, a picture of another size than its camera, or cameras so far from the origin that
            float32 does not tell them apart.
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
            f"the cameras of {folder} stand around ({place}), too far from the origin for 32-bit numbers",
            "a field of `xarch pvd train` keeps the origin of its pictures; for others, subtract that place from all "
            "cameras",
        )
    cameras = cameras_of(train)
    facts = replace(view_facts(train, cameras), world=world, world_of=world_of)
    return PosedViews(cameras, cameras_of(heldout), facts, digest, heldout)


def _turned(folder: str, scale: float | None) -> tuple[float, ...]:
    """The world that torch-ngp and PVD train in."""
    if scale is None:
        raise UsageError(
            f"the field is of torch-ngp or PVD, which turn the world of {folder} and scale it by a number that no file "
            "keeps",
            "say the --scale of its training: `--set data.options.world_scale=0.33` is what they take by themselves",
        )
    return (*AXES[:3].flatten().tolist(), scale)


def near_world(posed: PosedImages) -> tuple[float, ...]:
    """The world of a field that is trained from pictures: theirs, or moved to the middle of cameras far from the
    origin; 13 numbers as in ViewFacts."""
    if not posed.far():
        return ()
    x, y, z = (-v for v in posed.c2w[:, :3, 3].mean(0).tolist())
    return (1.0, 0.0, 0.0, x, 0.0, 1.0, 0.0, y, 0.0, 0.0, 1.0, z, 1.0)


def cameras_of(posed: PosedImages) -> list[Camera]:
    """Return one camera per picture."""
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
