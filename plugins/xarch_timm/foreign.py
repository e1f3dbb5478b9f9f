"""Weights of EfficientNets in the names of the package efficientnet_pytorch, under timm's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

STEM = "_conv_stem.weight"
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PLAIN = {**EXPANDED, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Modules of a block without expansion."""


def renamed(given: Mapping[str, T], own: Mapping[str, object]) -> dict[str, T]:
    """Return weights under timm's names; those that are in timm's names already are unchanged.

    Args:
        own: names of the timm model, whose blocks count within stages.
    """
    if STEM not in given:
        return dict(given)
    places = list(dict.fromkeys(".".join(n.split(".")[:3]) for n in own if n.startswith("blocks.")))
    found: dict[str, T] = {}
    for name, value in given.items():
        outer, _, rest = name.partition(".")
        if outer != "_blocks":
            found[f"{OUTER.get(outer, outer)}.{rest}"] = value
            continue
        number, module, rest = rest.split(".", 2)
        inner = EXPANDED if f"_blocks.{number}._expand_conv.weight" in given else PLAIN
        place = places[int(number)] if int(number) < len(places) else f"blocks.{number}"
        found[f"{place}.{inner.get(module, module)}.{rest}"] = value
    return found
