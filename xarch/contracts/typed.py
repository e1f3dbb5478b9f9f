"""Typed data from JSON that others wrote: facts, records and headers are dataclasses, checked field by field."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from xarch.errors import UsageError
from xarch.files.limits import absurd_number, shown

T = TypeVar("T")

Size = Annotated[int, Field(ge=1, le=1 << 20)]
"""Width, count or extent of one axis of a model; what is built from it is compared with the file afterwards."""
Index = Annotated[int, Field(ge=0, le=1 << 40)]
"""Index or number of things that are not allocated one by one."""

_SHOWN = 3
"""Faults named in one message."""


def typed(kind: type[T], data: Any, where: str) -> T:
    """Build an annotated dataclass from plain data; lists become tuples, unknown keys and wrong types are errors.

    Args:
        kind: a dataclass; ``Annotated[..., Field(ge=..., le=...)]`` bounds a number, such as :data:`Size`.
        data: the data, usually parsed JSON.
        where: name of the data in errors.

    Raises:
        UsageError: a key is missing or unknown, a value has another type or exceeds its bounds, or a number is not
            finite; every fault with the value seen.
    """
    found = absurd_number(data)
    if found is not None:
        raise UsageError(f"{where}: {found[0]} is {shown(found[1])}, beyond any number expected here")
    try:
        adapter: TypeAdapter[T] = _adapter(cast(Any, kind))
        return adapter.validate_python(data)
    except ValidationError as e:
        faults = [
            f"{_place(item['loc'])}{item['msg'].removeprefix('Value error, ')} (seen {shown(item.get('input'))})"
            for item in e.errors(include_url=False, include_context=False)[:_SHOWN]
        ]
        more = f"; {e.error_count() - _SHOWN} more" if e.error_count() > _SHOWN else ""
        raise UsageError(
            f"{where}: {'; '.join(faults)}{more}", "the file is damaged; download or write it again"
        ) from e


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    if dataclasses.is_dataclass(kind):
        with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(cast(Any, kind))
    return TypeAdapter(kind)


def _place(keys: tuple[int | str, ...]) -> str:
    """The place of a fault before its text; nothing for the data as a whole."""
    return f"{'.'.join(map(str, keys))[:80]}: " if keys else ""
