"""Image of a field, for inspection by a person."""

from __future__ import annotations

import io

from xarch import UsageError
from xarch_field.teacher import FieldModel
from xarch_field.turntable import orbit, pictures, to_image


def picture(model: FieldModel, prompt: str, size: int | None) -> bytes:
    """Render a PNG of the field from "AZIMUTH ELEVATION" (degrees; "" means "0 20").

    Raises:
        UsageError: the prompt is not two numbers.
    """
    try:
        azimuth, elevation = (float(word) for word in (prompt or "0 20").split())
    except ValueError:
        raise UsageError(
            f"prompt {prompt!r}: expected azimuth and elevation in degrees", 'for example "45 20"'
        ) from None
    cameras = orbit(model.facts.views, azimuth, elevation, size=size)
    buffer = io.BytesIO()
    to_image(next(pictures(model.field, cameras, model.facts.samples))).save(buffer, "PNG")
    return buffer.getvalue()
