"""Validation of user or file data against a model, with actionable errors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from xarch.errors import UsageError

M = TypeVar("M", bound=BaseModel)
SHOWN = 80
"""Maximum number of characters shown of an invalid value."""


def validated(model: type[M], data: Mapping[str, Any], where: str, hint: str = "") -> M:
    """Validate data and return the model.

    Args:
        where: path of the data, prefixed to each invalid key with a dot, e.g. "student.options"; without a dot if it
            ends with a space.
        hint: help text; by default the existing keys.

    Raises:
        UsageError: unknown keys or invalid values, each with the expected and the actual value.
    """
    try:
        return model.model_validate(dict(data) if isinstance(data, Mapping) else data)
    except ValidationError as e:
        raise refusal(e, model, where, hint) from e


def refusal(error: ValidationError, model: type[BaseModel], where: str, hint: str = "") -> UsageError:
    """Return the error to show for data that a model rejects; arguments as for :func:`validated`."""
    lines = []
    for item in error.errors():
        keys = ".".join(str(part) for part in item["loc"])
        name = f"{where}{'' if where.endswith(' ') or not keys else '.'}{keys}"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), list(model.model_fields), n=1)
            lines.append(f"{name}: unknown key" + (f"; did you mean {near[0]!r}?" if near else ""))
            continue
        seen = repr(item.get("input"))
        seen = seen if len(seen) <= SHOWN else f"{seen[:SHOWN]}..."
        lines.append(f"{name}: {item['msg'].removeprefix('Value error, ')} (seen {seen})")
    return UsageError("; ".join(lines), hint or f"keys here: {', '.join(sorted(model.model_fields)) or 'none'}")
