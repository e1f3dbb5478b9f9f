"""Names of the classes of ImageNet and its subsets, which timm ships."""

from __future__ import annotations

from xarch import UsageError
from xarch_image import ImageFacts


def class_names(subset: str, facts: ImageFacts) -> tuple[str, ...]:
    """Return the name of every class, the first of its synonyms.

    Raises:
        UsageError: timm has no such subset, or it has another number of classes.
    """
    from timm.data import ImageNetInfo

    try:
        info = ImageNetInfo(subset)
    except AssertionError:
        raise UsageError(f"timm has no class names {subset!r}", "for example imagenet-1k or imagenet-22k") from None
    if info.num_classes() != facts.classes:
        raise UsageError(f"{subset} has {info.num_classes()} classes, the model {facts.classes}")
    return tuple(info.index_to_description(i).split(",")[0] for i in range(facts.classes))
