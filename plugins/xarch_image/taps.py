"""Canonical taps of image classifiers; k counts tapped stages from 1 to at most 4.

===========  =======  ===========  ================================================================================
name         kind     layout       value
===========  =======  ===========  ================================================================================
input        image    BCHW         images of the model's size and channels, in 0 to 1
normalised   image    BCHW         the same, normalised: what the network reads
features.k   feature  BCHW         output of stage k on its grid, without prefix tokens
stages.k     stage    BCHW or BLD  the same place in the model's own form: a map of a convolutional model; prefix tokens
                                   (class tokens), then the grid row by row, of a model with attention or token mixing
pooled.head  feature  BD           what one classifier of several reads: the class token, the distillation token
pooled       feature  BD           what the classifier reads
logits.head  logits   BK           class scores of one classifier of several, by its name in the facts
logits       logits   BK           class scores; of several classifiers the mean
===========  =======  ===========  ================================================================================

``info`` of features and stages: ``kind`` ("conv" or "token"), ``prefix_tokens``, ``grid`` (height, width), ``pooled``
(width of the classifier's input) and ``last`` (number of the last stage).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from xarch import Tap

if TYPE_CHECKING:
    from xarch_image.facts import ImageFacts

FAMILY = "image"
TOKENS = ("cls", "dist")
"""Classifiers that read a token each, both of the width ``pooled``; of any others the widths are not known."""


def image_taps(facts: ImageFacts) -> dict[str, Tap]:
    """Return all taps in the order in which a forward pass reaches them."""
    return {tap.name: tap for tap in _taps(facts)}


def _taps(facts: ImageFacts) -> Iterator[Tap]:
    image = {"C": facts.channels, "H": facts.height, "W": facts.width}
    yield Tap("input", "image", "BCHW", image)
    yield Tap("normalised", "image", "BCHW", image)
    for number, feature in enumerate(facts.features, 1):
        info = {
            "kind": facts.kind,
            "prefix_tokens": facts.prefix_tokens,
            "grid": (feature.height, feature.width),
            "pooled": facts.pooled,
            "last": len(facts.features),
        }
        sizes = {"C": feature.channels, "H": feature.height, "W": feature.width}
        yield Tap(f"features.{number}", "feature", "BCHW", sizes, info)
        if facts.kind == "conv":
            yield Tap(f"stages.{number}", "stage", "BCHW", sizes, info)
        else:
            length = facts.prefix_tokens + feature.height * feature.width
            yield Tap(f"stages.{number}", "stage", "BLD", {"L": length, "D": feature.channels}, info)
    tokens = facts.heads if facts.heads == TOKENS else ()
    for name in (*(f"pooled.{head}" for head in tokens), "pooled"):
        yield Tap(name, "feature", "BD", {"D": facts.pooled})
    for name in (*(f"logits.{head}" for head in facts.heads), "logits"):
        yield Tap(name, "logits", "BK", {"K": facts.classes})
