"""Rewrites that let an ordinary module be exported to a profile that lacks some of its operators.

Every lowering is an object in its own file: torch functions that are replaced while the module is traced, or a
rewrite of the graph. An export applies the ones its profile needs; the parity gate checks the result.
:func:`apply` returns the lowered module in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from xarch.contracts.export import Profile
from xarch.export.lowerings import argmin, erf, hard, layer_norm, rank, sdpa, waves
from xarch.export.lowerings.lowering import Lowering
from xarch.kernels.graph_forms import FORMS, graph_forms

LOWERINGS = (
    erf.LOWERING,
    sdpa.LOWERING,
    layer_norm.LOWERING,
    hard.LOWERING,
    waves.LOWERING,
    argmin.LOWERING,
    rank.LOWERING,
)


def needed(profile: Profile) -> list[Lowering]:
    """Return the lowerings for a profile: those whose operators it lacks and those it requests by name."""
    return [one for one in LOWERINGS if one.needed(profile) or one.name in profile.lowerings]


def apply(module: nn.Module, profile: Profile) -> nn.Module:
    """Return ``module`` as exported to ``profile``: the same computation with operators the profile has.

    Weights are shared with ``module``, which is not changed; the module itself is returned if nothing has to be
    rewritten. Rewrites of the graph (``rank``) appear only in the exported file.
    """
    functions = _functions(profile)
    return Lowered(module, functions) if functions else module


@contextmanager
def lowered(profile: Profile) -> Iterator[None]:
    """Run torch functions in the form ``profile`` needs, and operations in the form it prefers, within the block."""
    functions = _functions(profile)
    forms = {one: [form for form in profile.lowerings if form in known] for one, known in FORMS.items()}
    preferred = {one: able[0] for one, able in forms.items() if able}
    with graph_forms(**preferred), _Replaced(functions) if functions else nullcontext():
        yield


def rewrite(model: ir.Model, profile: Profile) -> int:
    """Apply the required graph rewrites in place and return the number of changes."""
    return sum(one.graph(model, profile) for one in needed(profile) if one.graph is not None)


def helping(operators: set[str]) -> list[Lowering]:
    """Return the lowerings that replace some of these operators."""
    return [one for one in LOWERINGS if operators & set(one.replaces)]


def _functions(profile: Profile) -> dict[Callable[..., Any], Callable[..., Any]]:
    return {plain: other for one in needed(profile) for plain, other in one.functions.items()}


class Lowered(nn.Module):
    """A module whose torch functions are replaced while it runs."""

    def __init__(self, module: nn.Module, functions: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.module, self.functions = module, dict(functions)

    def forward(self, *inputs: torch.Tensor) -> Any:
        with _Replaced(self.functions):
            return self.module(*inputs)


class _Replaced(TorchFunctionMode):
    def __init__(self, functions: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.functions.get(func, func)(*args, **(kwargs or {}))
