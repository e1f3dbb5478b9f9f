"""Tables that torch's ONNX exporter builds anew for every graph, built once per process of tests.

They are two thirds of the time of a small export: signatures of 500 translations, and the operators to decompose. Both
depend on nothing but the opset and on what is registered. A torch that builds them elsewhere is left as it is.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

REGISTRY = "torch.onnx._internal.exporter._registration"
DECOMPOSITIONS = ("torch.export.exported_program", "torch.export.decomp_utils")
_done: set[str] = set()


def share() -> None:
    """Share the tables of the modules that are loaded by now; cheap when there is nothing new."""
    if REGISTRY in sys.modules and REGISTRY not in _done:
        _done.add(REGISTRY)
        _share_translations(getattr(sys.modules[REGISTRY], "ONNXRegistry", None))
    for name in DECOMPOSITIONS:
        if name in sys.modules and name not in _done:
            _done.add(name)
            _share_operators(sys.modules[name])


def _share_translations(registry: Any) -> None:
    build = getattr(registry, "from_torchlib", None)
    if build is None or set(vars(registry())) != {"_opset_version", "functions"}:
        return
    built = functools.cache(build)

    def from_torchlib(*arguments: Any, **options: Any) -> Any:
        """A registry of one's own, which may be added to."""
        whole, copy = built(*arguments, **options), registry()
        copy._opset_version = whole._opset_version
        copy.functions = {target: list(found) for target, found in whole.functions.items()}
        return copy

    registry.from_torchlib = staticmethod(from_torchlib)


def _share_operators(module: Any) -> None:
    collect = getattr(module, "_collect_all_valid_cia_ops", None)
    if collect is None:
        return
    collected = functools.cache(lambda registered: frozenset(collect()))

    def operators() -> set[Any]:
        registered = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        return set(collected(len(registered)))

    module._collect_all_valid_cia_ops = operators
