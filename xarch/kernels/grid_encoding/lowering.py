"""Which operators an exported grid is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from xarch.errors import UsageError

LOWERINGS = ("grid_sample", "gather")
_CHOSEN: ContextVar[str] = ContextVar("xarch_grid_lowering", default="grid_sample")


@contextmanager
def grid_lowering(name: str) -> Iterator[None]:
    """Within the block, exporters record grids over one and two axes as 4-D GridSample ("grid_sample", opset 16 and
    later) or as Gather and arithmetic ("gather"). Grids over three axes are always gathered: 5-D GridSample needs opset
    20.

    Raises:
        UsageError: unknown name.
    """
    if name not in LOWERINGS:
        raise UsageError(f"grids have no lowering {name!r}", f"choose one of {', '.join(LOWERINGS)}")
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def lowering() -> str:
    """The lowering in force."""
    return _CHOSEN.get()
