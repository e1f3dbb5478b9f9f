"""Opens data sets of pictures as a run does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xarch import BatchStream, DataInfo, DataRequest
from xarch.planning.resolve import providers, resolve_data
from xarch.registry.loader import get_registry


class Data:
    """A data set with its options, as a run opens it."""

    def __init__(self, ref: str, options: dict[str, Any], facts: Any = None) -> None:
        found = resolve_data(get_registry(), f"images:{ref}", options)
        self.adapter = found.adapter
        self.request = DataRequest(found.ref, found.options, samples=6, provider=providers(get_registry()), facts=facts)

    @property
    def info(self) -> DataInfo:
        return self.adapter.describe(self.request)

    def open(self, split: Any = "train", **changes: Any) -> BatchStream:
        return self.adapter.open(replace(self.request, split=split, **changes))


@pytest.fixture
def data() -> Callable[..., Data]:
    """``data(ref, **options)``."""

    def make(ref: Any, facts: Any = None, **options: Any) -> Data:
        return Data(str(ref), options, facts)

    return make
