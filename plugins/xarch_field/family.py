"""Family ``radiance-field``: density and colour at every point of a scene, seen along rays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from xarch import Batch, DataInfo, Family, Options, Runner
from xarch_field.facts import FieldFacts

PROGRAM = Path(__file__).with_name("device") / "render.py"
"""What runs the exports on a device."""


class PictureOptions(Options):
    """Options of ``xarch generate`` for a field."""

    size: int | None = Field(None, ge=1, le=4096, description="pixels along the longer side; default: the views' own")


class FieldFamily(Family):
    """Radiance fields; a stage's sample settings decide whether batches hold points or rays.

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
    hub_task = "image-to-3d"
    GenerateOptions = PictureOptions

    def accepts(self, facts: FieldFacts, data: DataInfo) -> str | None:
        """Accept all data: fields read points and rays of their own scene."""
        return None

    def runner(self, graphs: Sequence[str], student: Path) -> Runner | None:
        """Return the program that renders pictures and turntables; it needs the graph ``rays``."""
        if "rays" not in graphs:
            return None
        return Runner(PROGRAM, "picture.png --turntable turn.gif", ("numpy", "onnxruntime", "pillow"))

    def generate(self, model: Any, processor: Any, prompt: str, options: PictureOptions) -> bytes:
        """Render the scene as PNG; the prompt is "AZIMUTH ELEVATION" in degrees, "" for a front view."""
        from xarch_field.generation import picture

        return picture(model, prompt, options.size)

    def example_batch(self, facts: FieldFacts, samples: int = 9, seed: int = 0) -> Batch:
        """Return points of the box and rays through its middle."""
        from xarch_field.testing import points_and_rays

        return points_and_rays(facts, samples, seed)

    def tiny_teacher(self, folder: Path) -> str:
        """Write two coloured balls as voxels."""
        from xarch_field.testing import voxel_balls

        return voxel_balls(folder / "teacher.npz")

    def tiny_run(self, folder: Path) -> Mapping[str, Any]:
        """Return settings that draw points and rays from the teacher."""
        return {"data.ref": "views:teacher"}
