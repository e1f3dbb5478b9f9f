"""Building timm models: untrained ones, and their description on the meta device."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from xarch import UsageError
from xarch_image import ImageFacts
from xarch_timm.anatomy import Anatomy, Net, examine
from xarch_timm.cosine import with_cosine_classifiers
from xarch_timm.two_tokens import TwoTokens

COSINE, DISTILLED = "cosine", "distilled"
"""Arguments that are not of ``timm.create_model``: the scale of cosine classifiers; a second token and classifier."""


def create(facts: ImageFacts) -> Net:
    """Return an untrained model with these facts, in eval mode; build it under ``torch.device`` to place it.

    Raises:
        UsageError: the model does not take these arguments.
    """
    name, arguments = facts.arch, dict(facts.options)
    cosine, distilled = arguments.pop(COSINE, None), arguments.pop(DISTILLED, False)
    common: dict[str, Any] = {"pretrained": False, "num_classes": facts.classes, "in_chans": facts.channels}
    try:
        with _replacing(name, arguments) as replaced, _with_two_tokens(name) if distilled else nullcontext():
            net: Net = timm.create_model(name, **common, **({} if replaced else arguments))
    except (TypeError, RuntimeError, AssertionError, ValueError, ZeroDivisionError) as e:
        raise UsageError(
            f"timm:{name} cannot be built with {dict(facts.options)}: {e}", "change the arguments after `?`"
        ) from e
    return (net if cosine is None else with_cosine_classifiers(net, cosine, name)).eval()


@contextmanager
def _replacing(name: str, arguments: Mapping[str, Any]) -> Iterator[bool]:
    """Let arguments replace those that the model's function in timm fixes; some of these functions accept none that
    they fix. Yields whether the arguments are handled here."""
    entry = timm.models.model_entrypoint(name)
    module = sys.modules[entry.__module__]
    fixed = inspect.getsource(entry)
    if not any(f"{key}=" in fixed for key in arguments) or not hasattr(module, "build_model_with_cfg"):
        yield False
        return
    build = module.build_model_with_cfg

    def with_arguments(*given: Any, **fixed: Any) -> Any:
        return build(*given, **{**fixed, **arguments})

    with patch.object(module, "build_model_with_cfg", with_arguments):
        yield True


@contextmanager
def _with_two_tokens(name: str) -> Iterator[None]:
    """Let timm build a transformer with a distillation token from the settings of one without.

    Raises:
        UsageError: it is no plain transformer.
    """
    module = sys.modules[timm.models.model_entrypoint(name).__module__]
    if not hasattr(module, "build_model_with_cfg"):
        raise UsageError(f"timm:{name} cannot have a distillation token", "a vit_* or deit* of timm, or leave it out")
    build = module.build_model_with_cfg

    def with_class(kind: Any, *given: Any, **fixed: Any) -> Any:
        if kind not in (VisionTransformer, VisionTransformerDistilled):
            raise ValueError(f"its blocks are those of a {kind.__name__}, no plain transformer with a class token")
        return build(TwoTokens, *given, **fixed)

    with patch.object(module, "build_model_with_cfg", with_class):
        yield


def describe(
    name: str,
    *,
    classes: int,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> ImageFacts:
    """Return the facts of a model.

    Args:
        classes: number of classes.
        channels: of its images; by default three.
        size: of its images; by default the model's own.
        arguments: of ``timm.create_model``.

    Raises:
        UsageError: it cannot be built like this, or not read images of this size.
    """
    given = json.dumps(dict(arguments or {}), sort_keys=True)
    return _described(name, classes, channels or 3, size, given)[0]


def anatomy(facts: ImageFacts) -> Anatomy:
    """Return where a model with these facts is tapped."""
    arguments = {k: v for k, v in facts.options.items() if k != "img_size"}
    given = json.dumps(arguments, sort_keys=True)
    return _described(facts.arch, facts.classes, facts.channels, (facts.height, facts.width), given)[1]


@lru_cache(maxsize=64)
def _described(
    name: str, classes: int, channels: int, size: tuple[int, int] | None, arguments: str
) -> tuple[ImageFacts, Anatomy]:
    own: dict[str, Any] = json.loads(arguments)
    start = ImageFacts(name, classes, channels, 1, 1, (), 1, options=own)
    with torch.device("meta"):
        net = create(start)
    config = net.pretrained_cfg
    size = size or tuple(config["input_size"][1:])
    if takes_size(net):
        own = {**own, "img_size": list(size)}
        with torch.device("meta"):
            net = create(replace(start, options=own))
    mean, std = (_per_channel(config[key], channels) for key in ("mean", "std"))
    # Counting operations hooks every tensor that could have a gradient.
    found = examine(net.requires_grad_(False), channels, size, name)
    facts = ImageFacts(
        arch=name,
        classes=classes,
        channels=channels,
        height=size[0],
        width=size[1],
        features=found.features,
        pooled=found.pooled,
        mean=mean,
        std=std,
        interpolation="bicubic" if config["interpolation"] == "bicubic" else "bilinear",
        kind=found.kind,
        prefix_tokens=found.prefix_tokens,
        macs=found.macs,
        heads=found.heads,
        options=own,
    )
    return facts, found


def takes_size(net: Net) -> bool:
    """Return whether a model is built for one image size."""
    return any("img_size" in inspect.signature(kind).parameters for kind in type(net).__mro__[:-1])


def has_own_size(name: str) -> bool:
    """Return whether timm builds a model for one image size only, which a student then keeps by default."""
    config = timm.get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return normalisation of ``channels`` channels from that of three: their mean where the number differs."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def classifier(net: Net) -> nn.Linear | None:
    """Return the layer that gives the logits, if it is a single linear one."""
    head = net.get_classifier()
    return head if isinstance(head, nn.Linear) else None
