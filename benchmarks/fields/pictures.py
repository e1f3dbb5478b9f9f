"""What a benchmark trains teachers on and judges by: the procedural scene, or a folder of posed pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xarch_field import Camera, RadianceField, render
from xarch_field.facts import ViewFacts
from xarch_pvd.data.datasets.fit import fit_box
from xarch_pvd.data.datasets.open import open_posed
from xarch_pvd.data.posed_views import cameras_of, posed_views
from xarch_pvd.evaluate.metric import psnr
from xarch_pvd.train import scene

VIEWS, TEST_VIEWS = 30, 4


@dataclass(frozen=True)
class Pictures:
    """A scene seen from known cameras.

    Attributes:
        name: of the scene, for the results.
        box: lower and upper corner, world units.
        cameras: of the training pictures.
        picture: RGBA [H, W, 4] of a training camera, by its number; straight alpha.
        truth: held-out cameras with their RGBA pictures.
        views: what random cameras around the scene look like.
    """

    name: str
    box: list[list[float]]
    cameras: list[Camera]
    picture: Callable[[int], Tensor]
    truth: list[tuple[Camera, Tensor]]
    views: ViewFacts

    def score(self, field: RadianceField, samples: int = 128) -> float:
        """Mean PSNR (dB) of a field's renders over white against the held-out pictures."""
        values = []
        with torch.no_grad():
            for camera, picture in self.truth:
                rgb = render(field, *camera.rays(), torch.ones(3), samples=samples)["rgb"]
                seen = picture[..., :3] * picture[..., 3:] + (1 - picture[..., 3:])
                values.append(psnr(rgb.view(seen.shape).clamp(0, 1), seen))
        return sum(values) / len(values)


def procedural(size: int) -> Pictures:
    """The scene that is made in code, ``size`` pixels a side."""
    cameras = scene.random_cameras(VIEWS, size, _generator(0))
    truth = [(c, scene.render_view(c)) for c in scene.random_cameras(TEST_VIEWS, size, _generator(1))]
    views = ViewFacts(width=size, height=size, focal=cameras[0].fx / size, radius=(scene.RADIUS, scene.RADIUS))
    return Pictures("procedural", scene.BOX, cameras, lambda i: scene.render_view(cameras[i]), truth, views)


def posed(folder: Path) -> Pictures:
    """A folder of posed pictures, as ``xarch pvd train`` reads it.

    Raises:
        UsageError: it has no known format.
    """
    views, train, test = posed_views(str(folder)), *(open_posed(folder, split=s) for s in ("train", "test"))
    corners = list(fit_box(train).aabb)
    truth = list(zip(cameras_of(test), (test.rgba(i) for i in range(len(test))), strict=True))
    return Pictures(folder.name, [corners[:3], corners[3:]], views.train, train.rgba, truth, views.facts)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
