"""Data sets of the Hugging Face hub, or saved by the library `datasets`, as text and as pictures."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the data providers without heavy imports."""
    for name, load, summary in (
        ("datasets", "TextRows", "texts of datasets:OWNER/NAME on the Hugging Face hub, or datasets:DIR"),
        ("datasets-images", "PictureRows", "pictures of datasets-images:OWNER/NAME on the hub, or datasets-images:DIR"),
    ):
        registry.data(
            name,
            load=f"xarch_datasets.provider:{load}",
            summary=summary,
            needs=("torch", "pydantic", "datasets"),
            extra="datasets",
        )
