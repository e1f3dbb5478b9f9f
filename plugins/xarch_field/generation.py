"""Image of a field, for inspection by a person."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from xarch import Options, UsageError, validated
from xarch_field.teacher import FieldModel
from xarch_field.turntable import orbit, pictures, to_image


class PictureOptions(Options):
    """Options of ``xarch generate`` for a field."""

    size: int | None = Field(None, ge=1, le=4096, description="pixels along the longer side")


def picture(model: FieldModel, prompt: str, options: Mapping[str, Any]) -> bytes:
    """Render a PNG of the field from "AZIMUTH ELEVATION" (degrees; "" means "0 20").

    Raises:
        UsageError: the prompt is not two numbers.
    """
    chosen = validated(PictureOptions, options, "generate")
    try:
        azimuth, elevation = (float(word) for word in (prompt or "0 20").split())
    except ValueError:
        raise UsageError(
            f"prompt {prompt!r}: expected azimuth and elevation in degrees", 'for example "45 20"'
        ) from None
    cameras = orbit(model.facts.views, azimuth, elevation, size=chosen.size)
    buffer = io.BytesIO()
    to_image(next(pictures(model.field, cameras, model.facts.samples))).save(buffer, "PNG")
    return buffer.getvalue()
