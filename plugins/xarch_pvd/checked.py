"""Data of a user or a file against a model, with an error a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from xarch import UsageError

M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], data: Mapping[str, Any], where: str) -> M:
    """The model of some data.

    Raises:
        UsageError: naming the first wrong key under ``where``, the value seen, what is wanted and the known keys.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join([where, *(str(part) for part in first["loc"])])
        raise UsageError(
            f"{key}: {first['msg'].removeprefix('Value error, ')} (seen {first.get('input')!r})",
            f"keys here: {', '.join(sorted(model.model_fields))}",
        ) from e
