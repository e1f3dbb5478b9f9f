"""Whether two modules have the same structure: they differ in nothing but the values of parameters and buffers."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from xarch.kernels.graph_forms import SIZES_ONLY

_CONTAINERS = (list, tuple, set, frozenset)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, Enum)


def structure(module: nn.Module, *, sizes: bool = True) -> Hashable:
    """Return a value that is equal for modules of the same structure: types, attributes, names and shapes.

    Objects that it cannot look into are equal only to themselves, and live as long as the result.

    Args:
        sizes: False: leave out dataclass fields marked ``xarch.kernels.SIZES_ONLY``.
    """
    owners = [(name, one) for name, one in module.named_modules(remove_duplicate=False)]
    places: dict[int, str] = {}
    tensors = []
    for name, tensor in named_tensors(module).items():
        # Weights that are one tensor in one module must be one in the other.
        first = places.setdefault(id(tensor), name)
        tensors.append((name, first, tuple(tensor.shape), tensor.dtype, tensor.device))
    return tuple((name, type(one), _attributes(one, sizes)) for name, one in owners), tuple(tensors)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module under all of their names."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return found | dict(module.named_buffers(remove_duplicate=False))


_INTERNAL = frozenset(vars(nn.Module()))


def _attributes(module: nn.Module, sizes: bool) -> Hashable:
    own = {name: value for name, value in vars(module).items() if name not in _INTERNAL or name == "training"}
    return _described(own, sizes)


def _described(value: Any, sizes: bool) -> Hashable:
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, _CONTAINERS):
        parts = [_described(item, sizes) for item in value]
        return (type(value), frozenset(parts) if isinstance(value, (set, frozenset)) else tuple(parts))
    if isinstance(value, Mapping):
        return (type(value), tuple((key, _described(item, sizes)) for key, item in value.items()))
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return (value.dtype, tuple(value.shape), hashlib.sha256(numbers).digest())
    if is_dataclass(value):
        used = [f for f in fields(value) if sizes or f.metadata != SIZES_ONLY]
        return (type(value), tuple(_described(getattr(value, f.name), sizes) for f in used))
    return _Itself(value)


class _Itself:
    """An object that is equal to no other."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
