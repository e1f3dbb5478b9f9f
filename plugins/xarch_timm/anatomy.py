"""Where to tap a timm model: found by running it once, without tables of names.

``forward_intermediates`` of timm returns the outputs of all blocks as maps. A pyramid is tapped at the last block of
each of its (last four) map sizes; a stack of more than four equal blocks at 1/6, 1/3, 5/6 and all of its depth,
which are the cumulative depths of a pyramid's usual 2-2-6-2 blocks; any other model at its last four.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from xarch import UsageError
from xarch_image import Feature

Net = Any
"""An ``nn.Module`` with timm's ``forward_intermediates``, ``forward_head`` and ``get_classifier``."""
STAGES = 4
DEPTHS = (1 / 6, 1 / 3, 5 / 6, 1)
PYRAMID = 3
"""Number of map sizes from which on a model is a pyramid."""
PROJECTIONS = ("qkv", "q", "qk", "kv", "to_qkv", "query", "q_proj", "in_proj_weight")
"""Attributes of a module with heads that make it attention: timm has no common base class for it."""


@dataclass(frozen=True)
class Anatomy:
    """What a forward pass of a model shows.

    Attributes:
        places: which blocks are tapped: indices of ``forward_intermediates``.
        features: form of each.
        pooled: width of what the classifier reads.
        classes: width of the logits.
        kind: see ``ImageFacts``.
        prefix_tokens: tokens before the grid.
        macs: multiply-adds per image.
        heads: names of its classifiers, where it has several.
    """

    places: tuple[int, ...]
    features: tuple[Feature, ...]
    pooled: int
    classes: int
    kind: Literal["conv", "token"]
    prefix_tokens: int
    macs: float
    heads: tuple[str, ...]


def examine(net: Net, channels: int, size: tuple[int, int], name: str) -> Anatomy:
    """Run a model once on zeros and describe it.

    Args:
        net: in eval mode; on the meta device nothing is computed.

    Raises:
        UsageError: it cannot read images of this size.
    """
    if not hasattr(net, "forward_intermediates"):
        raise UsageError(f"timm:{name} has no forward_intermediates, by which xarch taps models", "another model")
    x_BCHW = torch.zeros(2, channels, *size, device=next(net.parameters()).device)
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad():
            with counter, _called(net) as called:
                final, maps, _ = intermediates(net, x_BCHW)
                logits_BK = net.forward_head(final)
            pooled_BD = net.forward_head(final, pre_logits=True)
    except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise UsageError(
            f"timm:{name} cannot read images of {size[0]} x {size[1]} pixels with {channels} channels: {reason}",
            f"choose another size, timm:{name}?size=224, or arguments of the model such as &patch_size=4",
        ) from e
    places = _chosen(maps)
    tokens = any(t.ndim == 3 for t in (final if isinstance(final, list | tuple) else [final]))
    return Anatomy(
        places=places,
        features=tuple(Feature(*maps[i].shape[1:]) for i in places),
        pooled=pooled_BD.shape[-1],
        classes=logits_BK.shape[-1],
        kind="token" if tokens or any(attends(m) for m in called) else "conv",
        prefix_tokens=_prefix_tokens(net),
        macs=counter.get_total_flops() / 2 / len(x_BCHW),
        heads=tuple(heads(net)),
    )


def classifiers(net: Net) -> list[nn.Module]:
    """Return the modules that give class scores."""
    head = net.get_classifier()
    parts = head if isinstance(head, tuple | list | nn.ModuleList) else [head]
    return [part for part in parts if isinstance(part, nn.Module)]


def heads(net: Net) -> dict[str, nn.Module]:
    """Return the classifiers of a model that has several, by name; {} of one.

    timm calls the classifier of a distillation token after that of the class token, ``head`` and ``head_dist``: these
    are ``cls`` and ``dist``, any others are counted from 1.
    """
    found = classifiers(net)
    if len(found) < 2:
        return {}
    own = {id(module): name for name, module in net.named_modules()}
    first, *others = (own[id(module)] for module in found)
    if others == [f"{first}_dist"]:
        return dict(zip(("cls", "dist"), found, strict=True))
    return {str(number): module for number, module in enumerate(found, 1)}


def intermediates(
    net: Net, x_BCHW: Tensor, places: Sequence[int] | None = None, *, only: bool = False
) -> tuple[Any, list[Tensor], list[Tensor | None]]:
    """Run a model's blocks.

    Args:
        places: indices of the wanted blocks; by default all.
        only: stop after the last of them.

    Returns:
        What ``forward_head`` takes (None with ``only``); maps [B, C, H, W]; and for each its prefix tokens [B, P, D],
        or None without any.
    """
    with_prefix = {"return_prefix_tokens": True} if _prefix_tokens(net) else {}
    wanted = None if places is None else list(places)
    made = net.forward_intermediates(x_BCHW, wanted, stop_early=only, intermediates_only=only, **with_prefix)
    final, found = (None, made) if only else made
    maps = [m[0] if isinstance(m, tuple) else m for m in found]
    return final, maps, [m[1] if isinstance(m, tuple) else None for m in found]


def _prefix_tokens(net: Net) -> int:
    """Return the number of tokens before the grid that ``forward_intermediates`` can return."""
    able = "return_prefix_tokens" in inspect.signature(net.forward_intermediates).parameters
    return int(getattr(net, "num_prefix_tokens", 0) or 0) if able else 0


def _chosen(maps: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the indices of the tapped blocks, by the rule at the top of this file."""
    last_of = {tuple(m.shape[-2:]): i for i, m in enumerate(maps)}
    if len(last_of) >= PYRAMID:
        return tuple(sorted(last_of.values())[-STAGES:])
    if len(last_of) == 1 and len(maps) > STAGES:
        return tuple(sorted({math.ceil(len(maps) * depth) - 1 for depth in DEPTHS}))
    return tuple(range(len(maps)))[-STAGES:]


def attends(module: nn.Module) -> bool:
    """Return whether a module is attention with heads."""
    heads = getattr(module, "num_heads", 0)
    return isinstance(heads, int) and heads > 0 and any(hasattr(module, name) for name in PROJECTIONS)


@contextmanager
def _called(net: Net) -> Iterator[list[nn.Module]]:
    """Collect the modules that run."""
    seen: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda module, _: seen.append(module)) for m in net.modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
