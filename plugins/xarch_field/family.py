"""The family "radiance-field": density and colour at every point of a scene, seen along rays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from xarch import Batch, DataInfo, Family
from xarch_field.facts import FieldFacts


class FieldFamily(Family):
    """Batches hold points or rays, as a stage's sample says. Graphs are timed one by one.

    Legend of layouts: N points, R rays, C coordinates or colours.
    """

    Facts = FieldFacts
    unit = "sample"
    tensors: ClassVar[Mapping[str, str]] = {
        "dirs": "*",
        "xyz?": "NC",
        "origins?": "RC",
        "background?": "RC",
        "jitter?": "R",
    }
    metric = "field-psnr"

    def accepts(self, facts: FieldFacts, data: DataInfo) -> str | None:
        """Fields read points and rays of their own scene, whatever the data say about themselves."""
        return None

    def generate(self, model: Any, processor: Any, prompt: str, options: Mapping[str, Any]) -> bytes:
        """A picture of the scene as PNG; the prompt is "AZIMUTH ELEVATION" in degrees, "" for a view from the front.

        Option ``size``: pixels along the longer side.
        """
        from xarch_field.generation import picture

        return picture(model, prompt, options)

    def example_batch(self, facts: FieldFacts, samples: int = 9, seed: int = 0) -> Batch:
        """Points and rays through the middle of the box."""
        from xarch_field.testing import points_and_rays

        return points_and_rays(facts, samples, seed)

    def tiny_teacher(self, folder: Path) -> str:
        """Two coloured balls as voxels."""
        from xarch_field.testing import voxel_balls

        return voxel_balls(folder / "teacher.npz")

    def tiny_run(self, folder: Path) -> Mapping[str, Any]:
        """Points and rays are drawn from the teacher."""
        return {"data.ref": "views:teacher"}
