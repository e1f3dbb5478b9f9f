"""``field:demo``: a field of the procedural scene, trained once on this machine from its images."""

from __future__ import annotations

from pathlib import Path

import torch

from xarch import cache_dir, one_at_a_time, say
from xarch_field.facts import ViewFacts
from xarch_pvd.source.field_file import save_field_file
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.targets.representations.records import to_file
from xarch_pvd.train import scene
from xarch_pvd.train.training import Pixels, TrainingOptions, train_field

DEMO = "demo"
VERSION = 2
VIEWS, SIZE, STEPS, SEED = 40, 100, 1200, 0
SAMPLES = 128
"""Those of the field that all figures of the demo are of, twice the default."""


def demo_field() -> Path:
    """Return the file of the trained field in the user's cache; training takes a minute or two on one core."""
    file = cache_dir() / "fields" / f"demo-{VERSION}.safetensors"
    if file.is_file():
        return file
    with one_at_a_time(file.parent, say):
        if not file.is_file():
            _train(file)
    return file


def _train(file: Path) -> None:
    torch.manual_seed(SEED)
    cameras = scene.random_cameras(VIEWS, SIZE, torch.Generator().manual_seed(SEED))
    pixels = Pixels.of(cameras, lambda i: scene.render_view(cameras[i]))
    options = OPTIONS["hash"].model_validate({})
    field = build_field("hash", options, aabb=scene.BOX)

    def show(step: int, steps: int, loss: float) -> None:
        if step % 200 == 0:
            say(f"field:demo: step {step} of {steps}, loss {loss:.4f}")

    say("field:demo: training once on images of a procedural scene (a minute or two)")
    spent = train_field(field, pixels, TrainingOptions(steps=STEPS, samples=SAMPLES, seed=SEED), progress=show)
    radius = (scene.RADIUS, scene.RADIUS)
    views = ViewFacts(width=SIZE, height=SIZE, focal=cameras[0].fx / SIZE, radius=radius)
    details = {"scene": "procedural", "views": VIEWS, "steps": STEPS, "cpu_seconds": round(spent, 1)}
    save_field_file(file, to_file(field, options.model_dump(mode="json"), details), views, details)
