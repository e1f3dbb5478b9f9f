"""Which modules of a timm model may be replaced: found by running it once on the meta device."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from timm.layers import GELU, GELUTanh, Mlp, SwiGLU
from torch import Tensor, nn

from xarch import Replaceable
from xarch_image import ImageFacts
from xarch_timm.anatomy import attends
from xarch_timm.build import create

SAMPLES = 2
KINDS = {"qkv": "qkv", "q": "q", "k": "k", "v": "v", "q_proj": "q", "k_proj": "k", "v_proj": "v", "proj": "o"}
"""Linear layers of an attention -> their role."""


def replaceable_parts(facts: ImageFacts) -> tuple[Replaceable, ...]:
    """Return MLPs and projections that run once a pass on values of the images themselves: attention in windows makes
    samples of them, and a module that runs twice stands for two places."""
    return _parts(json.dumps(facts.to_json(), sort_keys=True))


@lru_cache(maxsize=16)
def _parts(described: str) -> tuple[Replaceable, ...]:
    facts = ImageFacts.from_json(json.loads(described))
    with torch.device("meta"):
        net = create(facts)
        images = torch.zeros(SAMPLES, facts.channels, facts.height, facts.width)
    found = {path: part for path, module in net.named_modules() for part in _of(net, path, module)}
    seen: dict[str, list[tuple[int, ...]]] = {}

    def note(path: str) -> Any:
        return lambda module, given: seen.setdefault(path, []).append(tuple(given[0].shape))

    handles = [net.get_submodule(path).register_forward_pre_hook(note(path)) for path in found]
    try:
        with torch.no_grad():
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    once = {path: shapes[0] for path, shapes in seen.items() if len(shapes) == 1 and shapes[0][0] == SAMPLES}
    return tuple(replace(found[path], positions=prod(shape[1:-1])) for path, shape in once.items())


def _of(net: nn.Module, path: str, module: nn.Module) -> list[Replaceable]:
    if type(module) is Mlp and isinstance(module.fc1, nn.Linear) and _plain(module.norm, module.act):
        return [Replaceable(path, "mlp", True, ("fc1",), module.act, "fc2", _name(module.act))]
    if type(module) is SwiGLU and _plain(module.norm, module.act):
        return [Replaceable(path, "mlp", True, ("fc1_g", "fc1_x"), _Gated(module.act), "fc2", _name(module.act))]
    parent, _, leaf = path.rpartition(".")
    if type(module) is nn.Linear and leaf in KINDS and attends(net.get_submodule(parent)):
        return [Replaceable(path, KINDS[leaf])]
    return []


def _plain(norm: nn.Module, act: nn.Module) -> bool:
    """Return whether hidden values depend on their own layer alone, by a function without parameters."""
    return isinstance(norm, nn.Identity) and not list(act.parameters())


def _name(act: nn.Module) -> str:
    """Return what kernels call an activation, "" if they do not know it."""
    if type(act) in (nn.GELU, GELU):
        return "gelu_tanh" if getattr(act, "approximate", "none") == "tanh" else "gelu"
    return "gelu_tanh" if type(act) is GELUTanh else {nn.SiLU: "silu", nn.ReLU: "relu"}.get(type(act), "")


@dataclass(frozen=True)
class _Gated:
    """act(gate) · value."""

    act: nn.Module

    def __call__(self, gate: Tensor, value: Tensor) -> Tensor:
        made: Tensor = self.act(gate) * value
        return made
