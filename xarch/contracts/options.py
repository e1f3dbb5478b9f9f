"""Base of every options model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from xarch.files.limits import LARGEST, absurd_number, shown


class Options(BaseModel):
    """Base of all options: unknown keys are errors, defaults are validated, and ``xarch inspect`` shows the schema.

    Every whole number is at most 2**53; an option whose number decides sizes states a limit of its own.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _within_limits(cls, data: Any) -> Any:
        found = absurd_number(data, floats=False)
        if found is not None:
            raise ValueError(f"numbers here lie within ±{LARGEST}, {found[0] or 'this one'} is {shown(found[1])}")
        return data
