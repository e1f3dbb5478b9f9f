"""The definition of a lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from xarch.contracts.export import Profile


@dataclass(frozen=True)
class Lowering:
    """One rewrite.

    Attributes:
        name: e.g. "erf"; a profile may request it by this name.
        summary: one line on what is replaced by what.
        replaces: operators of the plain form; a profile without one of them needs the rewrite.
        functions: torch function -> replacement with the same signature.
        graph: rewrites a model in place for a profile and returns the number of changes.
    """

    name: str
    summary: str
    replaces: tuple[str, ...] = ()
    functions: Mapping[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    graph: Callable[[ir.Model, Profile], int] | None = None

    def needed(self, profile: Profile) -> bool:
        """Whether a profile needs this lowering."""
        return self.graph is not None or not profile.allows(*self.replaces)
