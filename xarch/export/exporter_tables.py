"""Tables that torch's exporter builds anew for every graph, built once per process.

They are two thirds of the time of a small graph: signatures of 500 translations, and the operators to decompose. Both
depend on nothing but the opset and on what is registered.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

REGISTRY = "torch.onnx._internal.exporter._registration"
DECOMPOSITIONS = ("torch.export.exported_program", "torch.export.decomp_utils")


@contextmanager
def shared() -> Iterator[None]:
    """Let translations inside use the tables of the first one.

    torch has no public way to pass them; where a version of it builds them elsewhere, it does so for every graph.
    """
    with ExitStack() as stack:
        registry = getattr(_module(REGISTRY), "ONNXRegistry", None)
        if registry is not None and set(vars(registry())) == {"_opset_version", "functions"}:
            stack.enter_context(_replaced(registry, "from_torchlib", _translations))
        for name in DECOMPOSITIONS:
            stack.enter_context(_replaced(_module(name), "_collect_all_valid_cia_ops", _operators))
        yield


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@contextmanager
def _replaced(owner: Any, name: str, replacement: Callable[[Any], Any]) -> Iterator[None]:
    """Let ``owner.name`` be ``replacement(owner.name)`` for a while, if it exists."""
    own = vars(owner).get(name) if owner is not None else None
    if own is None:
        yield
        return
    setattr(owner, name, replacement(own))
    try:
        yield
    finally:
        setattr(owner, name, own)


@functools.cache
def _translations(own: Any) -> Any:
    """Return a method that gives every caller a registry of its own, to which operators may be added."""
    built = functools.cache(own.__func__)

    def from_torchlib(cls: Any, **options: Any) -> Any:
        whole, copy = built(cls, **options), cls()
        copy._opset_version = whole._opset_version
        copy.functions = {target: list(found) for target, found in whole.functions.items()}
        return copy

    return classmethod(from_torchlib)


@functools.cache
def _operators(own: Any) -> Any:
    collected = functools.cache(lambda registered: frozenset(own()))

    def operators() -> set[Any]:
        registered = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        return set(collected(len(registered)))

    return operators
