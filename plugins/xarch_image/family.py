"""Family ``image``: classifiers of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from xarch import Batch, DataInfo, Family, Runner
from xarch_image.facts import ImageFacts

LEAST_SEEN, MOST_EPOCHS = 40_000, 300
VALIDATED, EVALUATED = 500, 1000
"""Pictures that choose the best student, and that give the final figures, if there are as many."""

PROGRAM = Path(__file__).with_name("device") / "classify.py"
"""What runs the exports on a device."""


class ImageFamily(Family):
    """Images in, one class each.

    Batches: ``images`` float32 [B, C, H, W] in 0 to 1, not normalised; ``labels`` int64 [B], or [B, K] once batch steps
    have mixed them.
    """

    Facts = ImageFacts
    unit = "image"
    tensors: ClassVar[Mapping[str, str]] = {"images": "BCHW"}
    metric = "top1"
    hub_task = "image-classification"
    places: ClassVar[Mapping[str, str]] = {
        "logits": "logits",
        "hidden": "features.{}",
        "features": "features.{}",
        "labels": "batch:labels",
    }
    training: ClassVar[Mapping[str, Any]] = {
        "epochs": 40,
        "batch.size": 100,
        "optimiser.algorithm": "adamw",
        "optimiser.options.betas": [0.9, 0.999],
        "optimiser.lr": 2.0e-3,
        "optimiser.weight_decay": 0.05,
        "optimiser.clip": 5.0,
        "optimiser.schedule": "cosine",
        "optimiser.warmup": 0.075,
        "matches.labels.options.smoothing": 0.1,
        "validation.samples": VALIDATED,
    }
    evaluation: ClassVar[Mapping[str, Any]] = {"samples": EVALUATED, "batch": 100}
    constants = ("classifier.weight",)

    def accepts(self, facts: ImageFacts, data: DataInfo) -> str | None:
        """Require the data's classes, if they have any; size and channels are adapted."""
        classes = data.facts.get("classes")
        if isinstance(classes, int) and classes != facts.classes:
            return f"they have {classes} classes, the model {facts.classes}"
        return None

    def runner(self, graphs: Sequence[str], student: Path) -> Runner | None:
        """Return the program that prints the likeliest classes of pictures."""
        if "model" not in graphs:
            return None
        return Runner(PROGRAM, "picture.jpg --top 3", ("numpy", "onnxruntime", "pillow"))

    def report_sections(self, run: Any) -> Sequence[Any]:
        """Return pictures with both answers, recall by class, and which layers are alike."""
        from xarch_image.report import sections

        return sections(run)

    def training_on(self, data: DataInfo) -> Mapping[str, Any]:
        """Pass small data more often: students see :data:`LEAST_SEEN` pictures at least, in at most
        :data:`MOST_EPOCHS` epochs."""
        samples = data.facts.get("samples", {}).get("train") or LEAST_SEEN
        epochs = max(self.training["epochs"], min(MOST_EPOCHS, round(LEAST_SEEN / samples)))
        return {**self.training, "epochs": epochs, "validation.samples": _at_most(VALIDATED, "validation", data)}

    def evaluation_on(self, data: DataInfo) -> Mapping[str, Any]:
        """Evaluate no more pictures than are held out."""
        return {**self.evaluation, "samples": _at_most(EVALUATED, "heldout", data)}

    def example_batch(self, facts: ImageFacts, samples: int = 2, seed: int = 0) -> Batch:
        """Return random images."""
        from xarch_image.testing import image_batch

        return image_batch(facts, samples, seed)

    def tiny_teacher(self, folder: Path) -> str:
        """Write a random residual network for 32-pixel images in three classes."""
        from xarch_image.testing import tiny_classifier

        return tiny_classifier(folder)

    def tiny_run(self, folder: Path) -> Mapping[str, Any]:
        """Return settings for sixty pictures in three classes."""
        from xarch_image.testing import tiny_pictures

        return {"data.ref": tiny_pictures(folder / "pictures")}


def _at_most(wanted: int, split: str, data: DataInfo) -> int:
    """Return ``wanted``, or the samples of a split if there are fewer."""
    return min(wanted, data.facts.get("samples", {}).get(split) or wanted)
