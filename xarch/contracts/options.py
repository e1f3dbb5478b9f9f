"""Base of every options model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Base of all options: unknown keys are errors, defaults are validated, and ``xarch inspect`` shows the schema."""

    model_config = ConfigDict(extra="forbid", validate_default=True)
