"""Weights of timm models: files of any classifier in timm's names, and timm's own pretrained ones."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import timm
import torch
from torch import Tensor

from xarch import UsageError, load_weights, weights_header
from xarch_image import ImageFacts
from xarch_timm.anatomy import Net, classifiers
from xarch_timm.build import COSINE, create
from xarch_timm.cosine import with_cosine_classifiers
from xarch_timm.foreign import renamed

T = TypeVar("T")

SHOWN = 4


def shapes_of(file: Path, *, allow_pickle: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a checkpoint from its header; a permitted pickle is read whole.

    Raises:
        UsageError: the file does not exist, is damaged, or is a pickle that is not permitted.
    """
    if not file.is_file():
        raise UsageError(f"checkpoint {file} does not exist")
    if file.suffix == ".safetensors":
        return {name: tuple(t.shape) for name, t in weights_header(file).tensors.items()}
    return {name: tuple(t.shape) for name, t in load_weights(file, allow_pickle=allow_pickle).items()}


def load(net: Net, facts: ImageFacts, tensors: Mapping[str, Tensor], where: str, *, resize: bool) -> None:
    """Copy weights into a model of the same architecture.

    The first convolution is adapted to other channels, and with ``resize`` position embeddings to another image size,
    both by timm's own rules.

    Raises:
        UsageError: a tensor is missing, unknown, or has another shape.
    """
    own = net.state_dict()
    given = _plain(tensors, own)
    given = _adapted_stem(net, facts, given)
    filter_of = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if filter_of is not None and (resize or set(given) != set(own)):
        try:
            given = dict(filter_of(given, net))
        except (KeyError, RuntimeError, ValueError, AttributeError) as e:
            raise UsageError(f"{where}: timm could not read these weights: {e!r}", "other weights") from e
    missing = sorted(set(own) - set(given) - _derived(net))
    strange = sorted(set(given) - set(own))
    shapes = sorted(n for n in set(own) & set(given) if own[n].shape != given[n].shape)
    if missing or strange or shapes:
        facets = [(missing, "lacks"), (strange, "has unknown"), ([_sizes(n, own, given) for n in shapes], "differs in")]
        text = "; ".join(f"{word} {', '.join(names[:SHOWN])}" for names, word in facets if names)
        size = f"{facts.height} x {facts.width} pixels"
        raise UsageError(
            f"{where} is not a {facts.arch} with {facts.classes} classes for {size}: it {text}",
            "name the model it was trained as, its size (&size=32) and its arguments (&patch_size=4) after `?`",
        )
    net.load_state_dict(given, strict=False)


def pretrained(facts: ImageFacts) -> Net:
    """Return a model with timm's own pretrained weights, from timm's cache or the hub; a head for another number of
    classes is new.

    Raises:
        UsageError: timm has none, or cannot fetch them.
    """
    arguments = {key: value for key, value in facts.options.items() if key != COSINE}
    try:
        net: Net = timm.create_model(
            facts.arch, pretrained=True, num_classes=facts.classes, in_chans=facts.channels, **arguments
        )
    except (RuntimeError, OSError, ValueError, TypeError) as e:
        raise UsageError(
            f"timm:{facts.arch}: no pretrained weights: {(str(e) or repr(e)).splitlines()[0]}",
            "use weights from a file, ?checkpoint=FILE, or a machine that reaches the hub",
        ) from e
    if COSINE in facts.options:
        net = with_cosine_classifiers(net, facts.options[COSINE], facts.arch)
    return net.eval()


def from_file(facts: ImageFacts, file: Path, *, allow_pickle: bool, resize: bool, new_head: bool = False) -> Net:
    """Return a model with the weights of a file.

    Args:
        resize: whether position embeddings may be resampled to another image size.
        new_head: leave a classifier of other classes untrained.

    Raises:
        UsageError: see :func:`load`.
    """
    net = create(facts)
    own = net.state_dict()
    tensors = _plain(load_weights(file, allow_pickle=allow_pickle), own)
    if new_head:
        heads = {n for n in tensors if n in own and n in head_names(net) and own[n].shape != tensors[n].shape}
        tensors = {n: own[n] if n in heads else t for n, t in tensors.items()}
    load(net, facts, tensors, str(file), resize=resize)
    return net


def names_to_load(net: Net, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return which of a model's tensors a checkpoint with these shapes gives: all but a head for other classes."""
    heads, own = head_names(net), net.state_dict()
    plain = _plain(shapes, own)
    return [n for n, t in own.items() if n not in heads or plain.get(n) == tuple(t.shape)]


def pretrained_names(net: Net, facts: ImageFacts) -> list[str]:
    """Return which of a model's tensors timm's pretrained weights give."""
    other = net.pretrained_cfg.get("num_classes") != facts.classes or COSINE in facts.options
    heads = head_names(net) if other else set()
    return [n for n in net.state_dict() if n not in heads]


def head_names(net: Net) -> set[str]:
    """Return the names of the classifier's tensors."""
    own = {id(t) for part in classifiers(net) for t in part.state_dict(keep_vars=True).values()}
    return {name for name, t in net.state_dict(keep_vars=True).items() if id(t) in own}


def sizes_in(name: str, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, int]:
    """Return what the shapes of a checkpoint say about its model: ``classes`` and ``channels``.

    Raises:
        UsageError: its classifier cannot be found.
    """
    with torch.device("meta"):
        net = timm.create_model(name, pretrained=False)
    own = net.state_dict()
    plain = _plain(shapes, own)
    weights = [n for n in sorted(head_names(net)) if n.endswith("weight") and n in plain]
    if not weights:
        shared = sum(n in own for n in plain)
        raise UsageError(
            f"{where} has no classifier of a {name}; {shared} of its {len(plain)} tensors have names of this model",
            "name the model it was trained as; if it is this one, without a classifier, give its classes: &classes=10",
        )
    found = {"classes": plain[weights[0]][0]}
    stem = _stem(net, plain)
    if stem:
        found["channels"] = plain[stem][1]
    return found


def _plain(given: Mapping[str, T], own: Mapping[str, object]) -> dict[str, T]:
    """Return entries under timm's names, without the prefix of a parallel wrapper."""
    return renamed({name.removeprefix("module."): value for name, value in given.items()}, own)


def _stem(net: Net, names: Mapping[str, object]) -> str | None:
    first = net.pretrained_cfg.get("first_conv")
    first = first[0] if isinstance(first, tuple | list) else first
    return f"{first}.weight" if first and f"{first}.weight" in names else None


def _adapted_stem(net: Net, facts: ImageFacts, given: dict[str, Tensor]) -> dict[str, Tensor]:
    stem = _stem(net, given)
    if stem is None or given[stem].shape[1] == facts.channels or given[stem].ndim != 4:
        return given
    from timm.models import adapt_input_conv

    return {**given, stem: adapt_input_conv(facts.channels, given[stem])}


def _derived(net: Net) -> set[str]:
    """Return buffers that a model computes itself and old files lack: relative positions, counters of batches."""
    return {name for name, _ in net.named_buffers() if not name.endswith(("running_mean", "running_var"))}


def _sizes(name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    return f"{name} ({list(given[name].shape)}, the model {list(own[name].shape)})"
