"""Fixtures for kernels that run in Triton's interpreter: the process must have been started with TRITON_INTERPRET=1."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pytest

from xarch.kernels import dispatch


@pytest.fixture(scope="module", autouse=True)
def triton_takes_cpu_tensors() -> Iterator[None]:
    """The Triton backends as they are registered, but allowed on the CPU."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/kernels/test_triton_interpreter.py instead"
    with pytest.MonkeyPatch.context() as patch:
        for table in dispatch._REGISTRY.values():
            if "triton" in table:
                free = dataclasses.replace(table["triton"], devices=None, available=lambda: None)
                patch.setitem(table, "triton", free)
        yield
