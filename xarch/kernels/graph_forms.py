"""The operators that an exported operation consists of, where there is a choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import version
from types import MappingProxyType

from xarch.errors import UsageError

FORMS = {
    "grid": ("grid_sample", "gather"),
    "hash": ("loop", "batched"),
    "waves": ("sine", "polynomial"),
    "prefix_sum": ("cumsum", "doubling"),
    "attention": ("standard", "runtime"),
    "recurrence": ("standard", "runtime"),
    "attention_to_all": ("standard", "runtime"),
}
"""Operation -> its forms, the default first.

grid: grids over one and two axes as 4-D GridSample (opset 16 and later), or as Gather and arithmetic. Grids over three
axes are always gathered: 5-D GridSample needs opset 20.
hash: a chain of operators a level, or one for all levels: a sixth of the nodes and larger intermediate values.
waves: Sin and Cos, or polynomials of float32 arithmetic for runtimes whose Sin is missing or half precision.
prefix_sum: CumSum, or log2(length) shifted additions.
attention: standard operators, or those of onnxruntime: one for a rotation, one for the attention to a memory, which it
writes in place.
attention_to_all: of a sequence to all of itself, likewise; version 1.32 of onnxruntime has it.
recurrence: standard operators, or those of version 1.32: one for all tokens of a linear attention or a gated delta
rule, and one for a causal convolution.
"""

SINCE = {"attention_to_all": (1, 32), "recurrence": (1, 32)}
"""Operation -> version of onnxruntime from which on it has the form ``runtime``."""

SIZES_ONLY = MappingProxyType({"sizes_only": True})
"""Metadata of a dataclass field that decides nothing about an exported graph but sizes of tensors and values of tables
that it is called with."""

_CHOSEN: ContextVar[Mapping[str, str] | None] = ContextVar("xarch_graph_forms", default=None)


@contextmanager
def graph_forms(**forms: str) -> Iterator[None]:
    """Within the block exporters record operations in these forms, e.g. ``graph_forms(grid="gather")``.

    Raises:
        UsageError: an unknown operation or form.
    """
    for operation, name in forms.items():
        if operation not in FORMS:
            raise UsageError(f"graph forms: no operation {operation!r}", f"known: {', '.join(FORMS)}")
        if name not in FORMS[operation]:
            raise UsageError(f"{operation} has no graph form {name!r}", f"choose one of {', '.join(FORMS[operation])}")
    token = _CHOSEN.set({**(_CHOSEN.get() or {}), **forms})
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def graph_form(operation: str) -> str:
    """The form currently selected for an operation, or its default where the installed onnxruntime lacks that form."""
    chosen = (_CHOSEN.get() or {}).get(operation, FORMS[operation][0])
    return chosen if chosen != "runtime" or in_runtime(operation) else FORMS[operation][0]


@cache
def in_runtime(operation: str) -> bool:
    """Whether the installed onnxruntime has an operation's form ``runtime``."""
    found = version("onnxruntime").split(".")[:2]
    return tuple(map(int, found)) >= SINCE.get(operation, (0, 0))
